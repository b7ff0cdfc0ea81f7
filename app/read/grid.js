// A table of layers and positions. All text of a model is set as text, never as markup.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".whole");
  root.send = (row, column) => setTriggerValue("cell", [data.rows[row], data.first + column]);
  root.data = data;
  const isNew = root.version !== data.version;
  if (isNew) build(root, data);
  root.version = data.version;
  choose(root, data.rows.indexOf(data.chosen[0]), data.chosen[1] - data.first);
  if (isNew) bring(root);
}

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function build(root, data) {
  const table = make("table");
  table.setAttribute("role", "grid");
  const head = table.createTHead().insertRow();
  head.append(make("th", data.corner, "corner"));
  for (const word of data.tokens) head.append(make("th", data.words[word]));
  const body = table.createTBody();
  data.rows.forEach((label, row) => {
    const line = body.insertRow();
    line.append(make("th", label));
    data.tokens.forEach((_, column) => {
      const word = data.tops[row][column][0];
      const cell = make("td", data.words[word]);
      cell.style.backgroundColor = `rgba(${data.colour}, ${data.shades[row][column]})`;
      if (data.right[row][column]) cell.classList.add("right");
      if (data.from[column] === row) cell.classList.add("from");
      line.append(cell);
    });
  });
  const scroller = root.querySelector(".scroller");
  scroller.replaceChildren(table);
  root.querySelector(".tip").hidden = true;
  listen(root, table);
}

function placeOf(cell) {
  return [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
}

function listen(root, table) {
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) pick(root, ...placeOf(cell));
  });
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell && event.pointerType === "mouse") tell(root, cell);
  });
  table.addEventListener("pointerleave", () => (root.querySelector(".tip").hidden = true));
  table.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const cell = event.target.closest("td");
    if (!cell || (!step && event.key !== "Enter")) return;
    event.preventDefault();
    const [row, column] = placeOf(cell);
    if (!step) return pick(root, row, column);
    const next = table.tBodies[0].rows[row + step[0]]?.cells[column + step[1] + 1];
    if (next?.tagName === "TD") {
      next.tabIndex = -1;
      next.focus();
    }
  });
}

function pick(root, row, column) {
  choose(root, row, column);
  root.send(row, column);
}

function choose(root, row, column) {
  root.querySelectorAll(".chosen").forEach((one) => {
    one.classList.remove("chosen");
    one.removeAttribute("tabindex");
    one.removeAttribute("aria-selected");
  });
  const table = root.querySelector("table");
  const cell = table.tBodies[0].rows[row]?.cells[column + 1];
  if (!cell) return;
  cell.classList.add("chosen");
  cell.tabIndex = 0;
  cell.setAttribute("aria-selected", "true");
  cell.parentElement.cells[0].classList.add("chosen");
  table.tHead.rows[0].cells[column + 1].classList.add("chosen");
}

function bring(root) {
  // the open cell is in view, without moving the page
  const scroller = root.querySelector(".scroller");
  const cell = root.querySelector("td.chosen");
  if (!cell) return;
  const right = cell.offsetLeft + cell.offsetWidth;
  const below = cell.offsetTop + cell.offsetHeight;
  if (right > scroller.clientWidth) scroller.scrollLeft = right - scroller.clientWidth;
  if (below > scroller.clientHeight) scroller.scrollTop = below - scroller.clientHeight;
}

function tell(root, cell) {
  const { data } = root;
  const [row, column] = placeOf(cell);
  const tip = root.querySelector(".tip");
  tip.replaceChildren(make("div", `${data.noun} ${data.rows[row]}, after ${data.words[data.tokens[column]]}`, "where"));
  data.tops[row][column].forEach((word, place) => {
    const line = make("div", undefined, "line");
    line.append(make("span", data.words[word]), make("span", percent(data.shares[row][column][place])));
    tip.append(line);
  });
  tip.append(
    make("div", `entropy ${data.entropy[row][column].toFixed(2)} · KL ${data.kl[row][column].toFixed(2)} nats`, "where"),
  );
  tip.hidden = false;
  const outer = root.getBoundingClientRect();
  const inner = cell.getBoundingClientRect();
  const left = Math.min(inner.left - outer.left, outer.width - tip.offsetWidth - 4);
  const below = inner.bottom - outer.top + 3;
  const above = inner.top - outer.top - tip.offsetHeight - 3;
  tip.style.left = `${Math.max(left, 0)}px`;
  tip.style.top = `${above > 0 && below > outer.height / 2 ? above : below}px`;
}

function percent(share) {
  return share >= 0.1 ? `${Math.round(100 * share)}%` : `${(100 * share).toPrecision(2)}%`;
}
