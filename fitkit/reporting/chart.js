"use strict";
// Charts over the epochs of a run, as SVG. They share one view: the zoomed range and the cursor.

const element = (name, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

const isNumber = (value) => typeof value === "number";

/** A value with about five digits; infinities as signs. */
function format(value) {
  if (value === null || value === undefined) return "–";
  if (!isNumber(value)) return value.replace("Infinity", "∞");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(3);
  return String(Number(value.toPrecision(5)));
}

/** Round numbers in [low, high], about `count` of them, at least `least` apart. */
function ticks(low, high, count, least = 0) {
  const rough = Math.max((high - low) / Math.max(count, 1), least, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const large = Math.max(Math.abs(low), Math.abs(high));
  const plain = digits <= 5 && large < 1e6;
  const power10 = (value) => Math.floor(Math.log10(Math.abs(value)) + 1e-9);
  const exponential = (at) => at.toExponential(Math.min(Math.max(power10(at) - power10(step), 0), 6));
  return found.map((at) => [at, plain ? at.toFixed(digits) : Math.abs(at) < step / 2 ? "0" : exponential(at)]);
}

/** Powers of ten in [low, high], or round numbers where there are too few of them. */
function logTicks(low, high, count) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) {
    const between = ticks(low, high, count).filter(([at]) => at > 0);
    return between.length > 1 ? between : [[low, format(low)], [high, format(high)]];
  }
  const each = Math.ceil((last - first + 1) / count), found = [];
  for (let power = first; power <= last; power += each) {
    const at = Number(`1e${power}`);
    found.push([at, power >= -3 && power <= 4 ? String(at) : `1e${power}`]);
  }
  return found;
}

/** The state that all charts of a page share: the range of epochs and the epoch under the cursor. */
class View {
  constructor(epochs, last) {
    this.epochs = epochs;
    const first = epochs.length ? epochs[0] : 1;
    this.whole = first === last ? [first - 0.5, last + 0.5] : [first, last];
    this.range = [...this.whole];
    this.cursor = null;
    this.listeners = [];
  }
  get isZoomed() { return this.range.some((end, side) => end !== this.whole[side]); }
  tell() { for (const listener of this.listeners) listener(); }
  zoom(from, to) {
    const [low, high] = this.whole;
    const width = Math.min(Math.max(to - from, Math.min(1, high - low)), high - low);
    const start = Math.min(Math.max((from + to - width) / 2, low), high - width);
    this.range = [start, start + width];
    this.tell();
  }
  reset() { this.range = [...this.whole]; this.tell(); }
  point(cursor) { if (cursor !== this.cursor) { this.cursor = cursor; this.tell(); } }
  /** The index of the visible epoch nearest to `at`. */
  nearest(at) {
    let best = null;
    this.epochs.forEach((epoch, index) => {
      const inSight = epoch >= this.range[0] && epoch <= this.range[1];
      if (inSight && (best === null || Math.abs(epoch - at) < Math.abs(this.epochs[best] - at))) best = index;
    });
    return best;
  }
  move(by) {
    const from = this.cursor ?? (by > 0 ? -1 : this.epochs.length);
    const cursor = Math.min(Math.max(from + by, 0), this.epochs.length - 1);
    const [low, high] = this.range, epoch = this.epochs[cursor];
    if (epoch < low || epoch > high) this.zoom(epoch - (high - low) / 2, epoch + (high - low) / 2);
    this.point(cursor);
  }
}

/** Base class of curves and timeline: the axis of epochs, the cursor, zooming by mouse, touch and keys. */
class Plot {
  constructor(view, height, label) {
    Object.assign(this, { view, height, width: 0, left: 8, right: 10, top: 8, bottom: 24, drag: null, isHovered: false });
    this.svg = element("svg", { class: "plot", tabindex: 0, role: "application", "aria-roledescription": "chart",
      "aria-label": `${label}. Left and right arrows move the cursor, plus and minus zoom, Escape shows all epochs.` });
    this.svg.style.height = `${height}px`;
    this.still = element("g");
    this.moving = element("g", { "pointer-events": "none" });
    this.svg.append(this.still, this.moving);
    this.tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    this.spoken = Object.assign(document.createElement("div"), { className: "unseen" });
    this.spoken.setAttribute("aria-live", "polite");
    view.listeners.push(() => this.draw());
    new ResizeObserver(([{ contentRect }]) => { this.width = contentRect.width; this.drawn = null; this.draw(); }).observe(this.svg);
    this.listen();
  }
  x(epoch) {
    const [low, high] = this.view.range;
    return this.left + ((epoch - low) / (high - low)) * (this.width - this.left - this.right);
  }
  epochAt(event) {
    const share = (event.clientX - this.svg.getBoundingClientRect().left - this.left) / (this.width - this.left - this.right);
    const [low, high] = this.view.range;
    return low + Math.min(Math.max(share, 0), 1) * (high - low);
  }
  listen() {
    const { svg, view } = this;
    const hover = (isHovered) => { this.isHovered = isHovered; };
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.drag = { from: this.epochAt(event), to: this.epochAt(event), x: event.clientX, far: false };
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      hover(true);
      const at = this.epochAt(event);
      if (this.drag) Object.assign(this.drag, { to: at, far: this.drag.far || Math.abs(event.clientX - this.drag.x) > 6 });
      view.cursor = view.nearest(at);
      view.tell();
    });
    svg.addEventListener("pointerup", () => {
      const drag = this.drag;
      this.drag = null;
      if (drag?.far) view.zoom(Math.min(drag.from, drag.to), Math.max(drag.from, drag.to));
    });
    svg.addEventListener("pointercancel", () => { this.drag = null; view.tell(); });
    svg.addEventListener("pointerleave", () => { hover(false); if (!this.drag) view.point(null); });
    svg.addEventListener("blur", () => { hover(false); view.point(null); });
    svg.addEventListener("dblclick", () => view.reset());
    svg.addEventListener("keydown", (event) => {
      const [low, high] = view.range, middle = view.epochs[view.cursor] ?? (low + high) / 2;
      const scale = (by) => view.zoom(middle - (middle - low) * by, middle + (high - middle) * by);
      const step = event.shiftKey ? Math.max(1, Math.round((high - low) / 10)) : 1;
      const keys = { ArrowLeft: () => view.move(-step), ArrowRight: () => view.move(step), Home: () => view.move(-Infinity),
        End: () => view.move(Infinity), "+": () => scale(0.5), "=": () => scale(0.5), "-": () => scale(2), Escape: () => view.reset(), 0: () => view.reset() };
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      hover(true);
      keys[event.key]();
      this.spoken.textContent = this.tip.hidden ? "" : this.tip.innerText;
    });
  }
  /** Redraws axes and curves if the range, the size or the scale changed, and always the cursor. */
  draw() {
    if (this.width < 60) return;
    const state = [...this.view.range, this.width, this.isLog].join();
    if (state !== this.drawn) { this.drawn = state; this.still.replaceChildren(...this.drawStill()); }
    this.moving.replaceChildren(...this.drawSelection(), ...this.drawCursor());
    this.drawTip();
  }
  drawEpochs() {
    const [low, high] = this.view.range, base = this.height - this.bottom;
    const marks = ticks(low, high, Math.min((this.width - this.left) / 64, high - low), 1);
    return [element("line", { class: "axis", x1: this.left, x2: this.width - this.right, y1: base, y2: base }),
      ...marks.map(([at, label]) => element("text", { class: "x", x: this.x(at), y: base + 17, "text-anchor": "middle" }, label))];
  }
  drawSelection() {
    if (!this.drag?.far) return [];
    const [a, b] = [this.x(this.drag.from), this.x(this.drag.to)];
    return [element("rect", { class: "select", x: Math.min(a, b), width: Math.abs(b - a), y: this.top, height: this.height - this.top - this.bottom })];
  }
  drawCursor() {
    if (this.view.cursor === null) return [];
    const x = this.x(this.view.epochs[this.view.cursor]);
    return [element("line", { class: "cursor", x1: x, x2: x, y1: this.top, y2: this.height - this.bottom })];
  }
  drawTip() {
    const { cursor, epochs } = this.view, rows = cursor === null || !this.isHovered ? [] : this.tipRows(cursor);
    this.tip.hidden = rows.length === 0;
    if (this.tip.hidden) return;
    const table = document.createElement("table");
    for (const cells of [[`epoch ${epochs[cursor]}`, ""], ...rows]) {
      const row = table.insertRow();
      for (const cell of cells) row.insertCell().append(cell);
    }
    this.tip.replaceChildren(table);
    const card = this.svg.parentElement, outer = card.getBoundingClientRect(), inner = this.svg.getBoundingClientRect();
    const x = inner.left - outer.left - card.clientLeft + this.x(epochs[cursor]), width = this.tip.offsetWidth;
    this.tip.style.left = `${x + 14 + width <= card.clientWidth ? x + 14 : Math.max(4, x - 14 - width)}px`;
    this.tip.style.top = `${inner.top - outer.top - card.clientTop + this.top + 2}px`;
  }
}

/** The curves of one metric: `series` is a list of { label, kind, values }. */
class Curve extends Plot {
  constructor(view, name, series) {
    super(view, 210, name);
    Object.assign(this, { series, isLog: false });
  }
  get canBeLog() { return this.series.some(({ values }) => values.some((value) => value > 0)); }
  isShown(value) { return isNumber(value) && (!this.isLog || value > 0); }
  y(value) {
    const [low, high] = this.domain, scale = this.isLog ? Math.log10 : Number;
    return this.height - this.bottom - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (this.height - this.bottom - this.top);
  }
  findDomain() {
    const [from, to] = this.view.range;
    let low = Infinity, high = -Infinity;
    for (const { values } of this.series) values.forEach((value, index) => {
      const epoch = this.view.epochs[index];
      if (this.isShown(value) && epoch >= from && epoch <= to) { low = Math.min(low, value); high = Math.max(high, value); }
    });
    if (low > high) return [this.isLog ? 0.1 : 0, 1];
    if (this.isLog) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    const space = low === high ? Math.abs(low) / 2 || 1 : (high - low) * 0.06;
    return [low >= 0 && low < (high - low) * 0.3 ? 0 : low - space, high + space];
  }
  drawStill() {
    this.domain = this.findDomain();
    const marks = (this.isLog ? logTicks : ticks)(...this.domain, 6);
    this.left = 14 + 6.8 * Math.max(2, ...marks.map(([, label]) => label.length));
    const lines = marks.flatMap(([at, label]) => [
      element("line", { class: "grid", x1: this.left, x2: this.width - this.right, y1: this.y(at), y2: this.y(at) }),
      element("text", { class: "y", x: this.left - 8, y: this.y(at) + 4, "text-anchor": "end" }, label)]);
    return [...lines, ...this.drawEpochs(), ...this.series.flatMap((one) => this.drawSeries(one))];
  }
  /** Neighboring values are joined; a missing value is a gap; a value without neighbors is a point. */
  drawSeries({ kind, values }) {
    const { epochs, range: [low, high] } = this.view, pieces = [];
    const first = Math.max(epochs.findIndex((epoch) => epoch >= low) - 1, 0);
    let piece = null;
    for (let index = first; index < epochs.length; index++) {
      if (this.isShown(values[index])) {
        if (!piece) pieces.push((piece = []));
        piece.push([this.x(epochs[index]), this.y(values[index])]);
      } else piece = null;
      if (epochs[index] > high) break;
    }
    const path = pieces.map((piece) => `M${this.thinned(piece).map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`).join("");
    const lonely = pieces.filter((piece) => piece.length === 1).map(([[x, y]]) => [x, y]);
    const inside = lonely.filter(([x]) => x >= this.left - 1 && x <= this.width - this.right + 1);
    return [element("path", { class: `curve ${kind}`, d: path, "clip-path": `inset(0 ${this.right - 1}px 0 ${this.left}px) view-box` }),
      ...inside.map(([x, y]) => element("circle", { class: `dot ${kind}`, cx: x, cy: y, r: 3 }))];
  }
  /** If there are many points per pixel, only the lowest and the highest, which look the same. */
  thinned(points) {
    if (points.length < 4 * this.width) return points;
    const columns = new Map();
    for (const point of points) {
      const column = columns.get(Math.round(point[0])) ?? [point, point];
      columns.set(Math.round(point[0]), [point[1] < column[0][1] ? point : column[0], point[1] > column[1][1] ? point : column[1]]);
    }
    return [...columns.values()].flatMap(([low, high]) => (low[0] <= high[0] ? [low, high] : [high, low]));
  }
  drawCursor() {
    const { cursor, epochs } = this.view;
    if (cursor === null) return [];
    const shown = this.series.filter(({ values }) => this.isShown(values[cursor]));
    return [...super.drawCursor(), ...shown.map(({ kind, values }) =>
      element("circle", { class: `dot at ${kind}`, cx: this.x(epochs[cursor]), cy: this.y(values[cursor]), r: 4.5 }))];
  }
  tipRows(cursor) { return this.series.map(({ label, values }) => [label, format(values[cursor])]); }
}

/** The timeline: one lane for each list of marks { epoch, text, kind, share }. */
class Lanes extends Plot {
  constructor(view, lanes) {
    super(view, lanes.length * 46 + 38, "Timeline");
    Object.assign(this, { lanes, right: 14, top: 0 });
  }
  drawStill() {
    this.isNarrow = this.width < 640; // labels stand above their lanes, not beside them
    this.left = this.isNarrow ? 12 : 24 + 7.5 * Math.min(24, Math.max(...this.lanes.map(({ label }) => label.length)));
    return [...this.lanes.flatMap((lane, index) => this.drawLane(lane, 32 + index * 46)), ...this.drawEpochs()];
  }
  drawLane({ label, marks }, base) {
    const [low, high] = this.view.range;
    const drawn = marks.filter(({ epoch }) => Math.ceil(epoch) >= low && epoch <= high).map((mark) => this.drawMark(mark, base));
    const [x, y] = this.isNarrow ? [0, base - 20] : [0, base + 4], short = label.length > 24 ? `${label.slice(0, 23)}…` : label;
    return [element("text", { class: "lane", x, y }, short, element("title", {}, label)),
      element("line", { class: "track", x1: this.left, x2: this.width - this.right, y1: base, y2: base }), ...drawn];
  }
  drawMark({ epoch, kind, share, text }, base) {
    const [low, high] = this.view.range, x = this.x(Math.max(epoch, low));
    const wide = Math.min(8, Math.max(1.5, ((this.width - this.left - this.right) / (high - low)) * 0.6));
    const shapes = {
      wait: () => element("rect", { x: x - wide / 2, width: wide, y: base - 18 * share, height: 18 * share }),
      best: () => element("path", { d: `M${x} ${base - 6}l6 6l-6 6l-6 -6z` }),
      stop: () => element("rect", { x: x - 5, width: 10, y: base - 5, height: 10 }),
      plain: () => element("circle", { cx: x, cy: base, r: 4 }),
    };
    const shape = shapes[kind]();
    shape.setAttribute("class", `mark ${kind}`);
    shape.append(element("title", {}, text));
    return shape;
  }
  tipRows(cursor) {
    const epoch = this.view.epochs[cursor];
    const near = this.lanes.flatMap(({ label, marks }) => marks.filter((mark) => Math.ceil(mark.epoch) === epoch).map(({ text }) => [label, text]));
    return near.length > 8 ? [...near.slice(0, 8), ["", `and ${near.length - 8} more`]] : near;
  }
}
