// Lists what is cut on the page; a table and a row of choices may scroll on a phone.
(phone) => {
  const found = [], walk = function* (root) {
    for (const e of root.querySelectorAll("*")) { yield e; if (e.shadowRoot) yield* walk(e.shadowRoot); } };
  const up = e => e.parentElement || (e.getRootNode().host ?? null);
  const ink = document.createElement("canvas").getContext("2d");
  const said = (what, text, by) => found.push(`${what}: ${text.trim().slice(0, 70)} (${by})`);
  const scrolls = o => o === "auto" || o === "scroll";
  for (const e of walk(document.body)) {
    const style = getComputedStyle(e);
    if (style.visibility === "hidden" || style.display === "none" ||
        e.closest("script, style, .dvn-scroller, canvas, details:not([open]) > :not(summary)")) continue;
    const at = e.getBoundingClientRect();
    if (at.right <= 1 || at.left >= innerWidth || e.closest("[data-testid=stSidebar]")?.getBoundingClientRect().width < 60) continue;
    if (e.matches("input[type=text], input[type=number], input:not([type])") && e.clientWidth > 1) {
      const text = e.value || e.placeholder;
      ink.font = style.font;
      const room = e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      if (text && ink.measureText(text).width > room + 1) said("input", text, Math.round(ink.measureText(text).width - room));
    }
    for (const node of e.childNodes) {
      if (node.nodeType !== 3 || !node.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const box = range.getBoundingClientRect();
      if (box.width < 2 || box.height < 2 || style.fontFamily.includes("Material")) continue;
      for (let a = e, wide = false; a && a !== document.body; a = up(a)) {
        const how = getComputedStyle(a), r = a.getBoundingClientRect();
        if (r.width <= 1 || r.height <= 1 || how.clipPath !== "none" && how.position === "absolute") break;  // for screen readers only
        if (how.position === "fixed" || a.matches("[data-testid=stMain], [data-testid=stSidebarContent]")) break;
        if (how.overflowX !== "visible" && !wide) {
          const over = Math.max(box.right - r.right, r.left - box.left);
          const free = scrolls(how.overflowX) && (a.matches("pre, .scroller, [data-testid=stCode] *") || phone && a.matches("[role=radiogroup]"));
          if (over > 1.5 && !free) { said("text", node.data, Math.round(over)); break; }
          if (free) wide = true;
        }
        if ((how.overflowY === "hidden" || how.overflowY === "clip") && box.bottom - r.bottom > 4) {
          said("line", node.data, Math.round(box.bottom - r.bottom)); break; }
      }
      for (const match of node.data.matchAll(/\S{12,}/g)) {
        range.setStart(node, match.index); range.setEnd(node, match.index + match[0].length);
        const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
        if (lines.size > 2) said("broken", match[0], lines.size + " lines");
      }
    }
  }
  for (const e of [document.documentElement, document.querySelector("[data-testid=stMain]")])
    if (e && e.scrollWidth > e.clientWidth + 1) said("page", e.tagName, e.scrollWidth - e.clientWidth);
  for (const s of document.querySelectorAll(".dvn-scroller"))
    if (!phone && s.scrollWidth > s.clientWidth + 20) said("table", s.closest("[data-testid=stDataFrame]")?.innerText ?? "", s.scrollWidth - s.clientWidth);
  const cells = new Set();
  for (const [text, over, canvas, left] of (window.wbDrawn ?? new Map()).values())
    if (canvas.isConnected && over > 1 && !cells.has(text) && !(phone && left + over > canvas.clientWidth - 20)) { cells.add(text); said("cell", text, over); }
  return [...new Set(found)];
}
