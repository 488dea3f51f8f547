"use strict";
// The report: headings, tables and charts from the JSON data in the page.

const data = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes and children; strings become text nodes, never HTML. */
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const formatCount = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en-US"));

function bytes(size) {
  if (size === null || size === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit++; }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

// ---- settings that survive a reload -----------------------------------------------------------

const storeName = `fitkit:${location.pathname}`;
const settings = (() => { try { return JSON.parse(sessionStorage.getItem(storeName)) ?? {}; } catch { return {}; } })();
function store(name, value) {
  settings[name] = value;
  try { sessionStorage.setItem(storeName, JSON.stringify(settings)); } catch { /* storage may be disabled */ }
}

// ---- the head ---------------------------------------------------------------------------------

function head() {
  const { status } = data;
  const pill = make("span", { class: `pill${status.running ? " running" : ""}`, id: "status" }, status.running ? "running" : "not running");
  const top = make("div", { class: "top" }, make("h1", {}, data.title), pill);
  if (status.reload_seconds) top.append(pauseButton(status.reload_seconds));
  return make("header", {}, top, status.text ? make("p", { class: "soft" }, status.text) : null, tiles());
}

function pauseButton(seconds) {
  const button = make("button", { type: "button", id: "pause" });
  const show = () => {
    button.textContent = settings.paused ? "Resume reloading" : "Pause reloading";
    button.title = `This page reloads itself every ${seconds} s during training.`;
  };
  button.addEventListener("click", () => { store("paused", !settings.paused); show(); });
  setInterval(() => { if (!settings.paused && !document.hidden && !document.querySelector("svg.plot:hover, svg.plot:focus")) location.reload(); }, seconds * 1000);
  show();
  return button;
}

function tiles() {
  const { progress, status, weights } = data;
  const done = progress.epoch ?? data.epochs.at(-1) ?? 0;
  const found = [["epochs", formatCount(done), status.last_epoch ? `of ${formatCount(status.last_epoch)}` : ""]];
  if (isNumber(progress.global_step)) found.push(["training batches", formatCount(progress.global_step), ""]);
  if (isNumber(progress.samples_seen)) found.push(["samples seen", formatCount(progress.samples_seen), ""]);
  for (const { name, value, epoch } of data.best) found.push([name, format(value), `epoch ${epoch}`]);
  if (weights.length) found.push(["weights and buffers", formatCount(weights.reduce((sum, { count }) => sum + count, 0)), ""]);
  return make("dl", { class: "tiles" }, ...found.map(([name, value, more]) =>
    make("div", { class: "tile" }, make("dt", {}, name), make("dd", {}, value, more ? make("small", {}, more) : null))));
}

// ---- curves -----------------------------------------------------------------------------------

/** Names without `val_`: the loss first, the learning rate last. */
function panelNames() {
  const names = Object.keys(data.columns).map((name) => (name.startsWith("val_") ? name.slice(4) : name));
  const rank = (name) => (name === "loss" ? 0 : /^lr(_\d+)?$/.test(name) ? 2 : 1);
  return [...new Set(names)].sort((a, b) => rank(a) - rank(b));
}

function seriesOf(name) {
  const has = (key) => Object.hasOwn(data.columns, key);
  const paired = has(`val_${name}`);
  const found = [];
  if (has(name)) found.push({ label: paired ? "training" : name, kind: "train", values: data.columns[name] });
  if (paired) found.push({ label: "validation", kind: "val", values: data.columns[`val_${name}`] });
  return found;
}

function panel(view, name) {
  const series = seriesOf(name), curve = new Curve(view, name, series);
  const button = make("button", { type: "button", "aria-pressed": "false", "aria-label": `log scale of ${name}` }, "log");
  const press = (isLog) => {
    curve.isLog = isLog;
    button.setAttribute("aria-pressed", String(isLog));
    curve.draw();
  };
  button.addEventListener("click", () => { press(!curve.isLog); store(`log ${name}`, curve.isLog); });
  button.disabled = !curve.canBeLog;
  if (settings[`log ${name}`] && curve.canBeLog) press(true);
  const values = series.map(() => make("b"));
  const legend = make("div", { class: "legend" }, ...series.map(({ label, kind }, index) =>
    make("span", {}, make("span", { class: `key ${kind}` }), series.length > 1 || label !== name ? label : "value", values[index])));
  const showValues = () => series.forEach((one, index) => {
    values[index].textContent = format(view.cursor === null ? one.values.findLast(isNumber) : one.values[view.cursor]);
  });
  view.listeners.push(showValues);
  showValues();
  return make("section", { class: "card panel", "data-name": name }, make("div", { class: "head" }, make("h3", {}, name), button), legend, curve.svg, curve.tip, curve.spoken);
}

function curves(view) {
  const names = panelNames();
  if (!data.epochs.length) return [make("h2", {}, "Curves"), make("p", { class: "note" }, "No epoch is done yet.")];
  const reset = make("button", { type: "button", id: "reset" }, "Show all epochs");
  reset.addEventListener("click", () => view.reset());
  const showReset = () => { reset.disabled = !view.isZoomed; store("range", view.isZoomed ? view.range : null); };
  const hint = make("span", { class: "note" }, "By epoch. Drag to zoom, double-click to show all epochs; with keys: arrows, + and −.");
  const found = [make("div", { class: "bar" }, make("h2", {}, "Curves"), hint, reset), make("div", { class: "panels" }, ...names.map((name) => panel(view, name)))];
  if (Array.isArray(settings.range)) view.zoom(...settings.range);
  view.listeners.push(showReset);
  showReset();
  return found;
}

function timeline(view) {
  if (!data.lanes.length || !data.epochs.length) return [];
  const plot = new Lanes(view, data.lanes);
  const events = data.lanes.flatMap(({ label, marks }) => marks.filter(({ kind }) => kind !== "wait").map((mark) => ({ label, ...mark }))).sort((a, b) => b.epoch - a.epoch);
  const list = make("ol", { class: "events" }, ...events.map(({ epoch, label, text }) =>
    make("li", {}, make("span", { class: "when" }, `epoch ${Math.ceil(epoch)}`), make("span", {}, make("span", { class: "soft" }, `${label}: `), text))));
  return [make("h2", {}, "Timeline"), make("section", { class: "card", id: "timeline" }, plot.svg, plot.tip, plot.spoken,
    make("details", {}, make("summary", {}, `Events as a list (${events.length})`), list))];
}

// ---- tables -----------------------------------------------------------------------------------

/** A table whose cells are stacked on a narrow screen; `columns` is a list of [label, class]. */
function table(columns, rows) {
  const header = make("tr", {}, ...columns.map(([label, kind]) => make("th", { scope: "col", class: kind }, label)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell, index) =>
    make("td", { class: columns[index][1], "data-label": columns[index][0] }, make("span", {}, cell)))));
  return make("div", { class: "card scroll" }, make("table", { class: "stack" }, make("thead", {}, header), make("tbody", {}, ...body)));
}

function checkpoints() {
  if (!data.checkpoints.length) return [];
  const rows = data.checkpoints.map(({ name, marks, epoch, step, size, condition, problem }) => {
    const label = make("span", {}, make("span", { class: "mono" }, name), ...marks.map((mark) => make("span", { class: `tag ${mark}` }, mark)));
    const state = make("span", { class: condition === "damaged" ? "damaged" : "" }, condition);
    if (problem) state.append(make("div", { class: "note" }, problem));
    return [label, isNumber(epoch) ? formatCount(Math.floor(epoch)) : "–", formatCount(step), bytes(size), state];
  });
  const columns = [["file", ""], ["epochs done", "number"], ["step", "number"], ["size", "number"], ["condition", ""]];
  const isKnown = (_, column) => columns[column][0] !== "size" || data.checkpoints.some(({ size }) => size !== null);
  return [make("h2", {}, "Checkpoints"), table(columns.filter(isKnown), rows.map((row) => row.filter(isKnown)))];
}

const card = ({ title, rows }) => make("section", { class: "card" }, make("h3", {}, title),
  make("dl", { class: "rows" }, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])));

function cards(title, sections) {
  return sections.length ? [make("h2", {}, title), make("div", { class: "panels" }, ...sections.map(card))] : [];
}

function weights() {
  if (!data.weights.length) return [];
  const rows = data.weights.map(({ module, tensors, dtype, count }) => [make("span", { class: "mono" }, module), tensors, dtype, formatCount(count)]);
  const inside = table([["module", ""], ["tensors", ""], ["dtype", ""], ["values", "number"]], rows);
  const details = make("details", { class: "wide" }, make("summary", {}, `Weights and buffers by module (${rows.length})`), inside);
  details.open = rows.length <= 12;
  return [details];
}

const last = Math.max(data.epochs.at(-1) ?? 1, ...data.lanes.flatMap(({ marks }) => marks.map(({ epoch }) => epoch)));
const view = new View(data.epochs, Number.isFinite(last) ? last : 1);
document.getElementById("report").replaceChildren(
  head(), ...data.notes.map((note) => make("p", { class: "note" }, `Note: ${note}.`)),
  ...curves(view), ...timeline(view), ...checkpoints(), ...cards("Configuration", data.sections), ...weights(),
  ...cards("Callbacks", data.callbacks), ...cards("Environment", data.environment.length ? [{ title: "Versions and machine", rows: data.environment }] : []));
