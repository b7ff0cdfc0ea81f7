// Notes what tables draw where, and how far it leaves its cell; runs before the page's own scripts.
(() => {
  const stacks = new WeakMap(), drawn = window.wbDrawn = new Map(), proto = CanvasRenderingContext2D.prototype;
  const state = c => { if (!stacks.has(c)) stacks.set(c, {now: null, saved: [], box: null}); return stacks.get(c); };
  const wrap = (name, before) => {
    const real = proto[name];
    proto[name] = function (...a) { before(this, a); return real.apply(this, a); };
  };
  const meet = (a, b) => !a ? b : [Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])];
  wrap("save", c => { const s = state(c); s.saved.push(s.now); });
  wrap("restore", c => { const s = state(c); s.now = s.saved.pop() ?? null; });
  wrap("beginPath", c => { state(c).box = null; });
  wrap("rect", (c, [x, y, w, h]) => { state(c).box = [x, y, x + w, y + h]; });
  wrap("clip", c => { const s = state(c); if (s.box) s.now = meet(s.now, s.box); });
  wrap("fillText", (c, [text, x, y]) => {
    const s = state(c), w = c.measureText(text).width;
    const left = c.textAlign === "right" || c.textAlign === "end" ? x - w : c.textAlign === "center" ? x - w / 2 : x;
    const right = Math.min(s.now ? s.now[2] : Infinity, c.canvas.clientWidth || Infinity);
    const lines = s.now && (y > s.now[3] || y < s.now[1]);  // a row that is scrolled away
    if (!lines && c.canvas.isConnected) drawn.set(c.canvas.dataset.testid + " " + Math.round(left) + " " + Math.round(y) +
      " " + Math.round(c.canvas.getBoundingClientRect().top), [text, Math.round(left + w - right), c.canvas, left]);
  });
})();
