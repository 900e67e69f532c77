// The component: makes the chart once, and takes new data without losing the zoom.

const TABLE_ROWS = 200, QUIET_MS = 250;
const HINT = "Click a bar to explain it. Keys: W and S zoom, A and D move, arrows step from bar to bar, "
  + "0 shows all. Drag to zoom to a time; Shift and drag moves; the wheel zooms with Ctrl or after a click.";

export default function ({ parentElement, data }) {
  const root = parentElement.querySelector(".lanes");
  let state = root.state;
  if (!state) {
    state = root.state = {
      root, canvas: root.querySelector(".main"), map: root.querySelector(".map"),
      tip: root.querySelector(".tip"), panel: root.querySelector(".panel"),
      table: root.querySelector(".table"), hovered: -1, chosen: -1, gap: null, drag: null,
      widths: new Map(), frames: 0,
    };
    state.canvas.state = state;
  }
  if (state.data !== data) {
    const before = state.model && state.chosen >= 0
      ? [word(state.model, "name", state.chosen), state.model.bars.row[state.chosen]] : null;
    state.data = data;
    state.model = readModel(data);
    state.hovered = -1;
    state.gap = null;
    state.chosen = before ? sameBar(state.model, before) : -1;
    state.view = zoomOfAddress(state.model);
    state.mapKey = "";
    legend(state);
    explain(state);
  }
  state.widths.clear();
  if (!state.listening) {
    state.listening = new ResizeObserver(() => request(state));
    state.listening.observe(state.canvas);
    listen(state);
    state.table.addEventListener("toggle", () => fillTable(state));
    window.addEventListener("popstate", () => {
      state.view = zoomOfAddress(state.model);
      request(state);
    });
  }
  request(state);
  return () => state.listening.disconnect();
}

function sameBar(model, [name, row]) {
  return (model.queues[row] ?? []).find((at) => word(model, "name", at) === name) ?? -1;
}

function request(state) {
  if (state.asked) return;
  state.asked = requestAnimationFrame(() => {
    state.asked = 0;
    paint(state);
    state.frames += 1;
    state.canvas.dataset.drawn = state.model.count;
    state.canvas.dataset.from = state.view.from;
    state.canvas.dataset.to = state.view.to;
  });
}

function zoomOfAddress(model) {
  const text = new URLSearchParams(location.search).get("zoom") ?? "";
  const found = text.match(/^(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)$/);
  const [from, to] = found ? [Number(found[1]), Number(found[2])] : [0, model.total];
  if (!(from < to) || from >= model.total) return { from: 0, to: model.total };
  return { from, to: Math.min(to, model.total) };
}

// The zoom is part of the address of the page, once it rests.
function keepZoom(state) {
  clearTimeout(state.timer);
  state.timer = setTimeout(() => {
    const address = new URL(location.href);
    const { view, model } = state;
    const whole = view.from <= 0 && view.to >= model.total;
    const text = [view.from, view.to].map((one) => String(Number(one.toFixed(6)))).join("-");
    if (whole) address.searchParams.delete("zoom");
    else address.searchParams.set("zoom", text);
    history.replaceState(history.state, "", address);
    if (state.table.open) fillTable(state);
  }, QUIET_MS);
}

function made(name, text, parent) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

function legend(state) {
  const { model, root, canvas } = state;
  const place = root.querySelector(".legend");
  place.replaceChildren();
  model.kinds.forEach((kind, at) => {
    const button = made("button", undefined, place);
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    made("i", undefined, button).style.background = kind.colour;
    made("span", kind.name, button);
    button.addEventListener("click", () => {
      if (!model.hidden.delete(at)) model.hidden.add(at);
      button.setAttribute("aria-pressed", String(!model.hidden.has(at)));
      request(state);
    });
  });
  const names = model.rows.map(rowName).join(", ");
  canvas.setAttribute(
    "aria-label",
    `Timeline: ${model.count} bars in ${model.rows.length} rows (${names}); ${endText(model)}. `
    + "The table below holds the same.",
  );
  state.table.querySelector("summary").textContent = "The bars in sight as a table";
}

// What a bar is, when it ran in each run, what it waited for, and where its estimate comes from.
function explain(state) {
  const { model, panel } = state, at = state.chosen;
  panel.replaceChildren();
  if (at < 0) {
    made("p", HINT, panel);
    return;
  }
  const other = model.bars.partner[at];
  const pair = (other < 0 ? [at] : [at, other]).sort((a, b) => model.bars.row[a] - model.bars.row[b]);
  const title = made("p", undefined, panel);
  made("b", word(model, "name", at), title);
  title.append(` on lane ${rowOf(model, at).lane}: ${word(model, "place", at)}`);
  const table = made("table", undefined, panel);
  const line = (name, texts) => {
    if (!texts.some(Boolean)) return;
    const row = made("tr", undefined, table);
    made("th", name, row).scope = "row";
    texts.forEach((text) => made("td", text || "-", row));
  };
  if (rowOf(model, at).source) line("", pair.map((one) => rowOf(model, one).source));
  line("Start", pair.map((one) => ms(model.bars.start[one])));
  line("Time", pair.map((one) => ms(model.bars.length[one])));
  line("Waited before it", pair.map((one) => waitText(model, one) || "not at all"));
  line("Size", pair.map((one) => size(model, one)));
  line("Rate", pair.map((one) => rate(model, one)));
  if (word(model, "estimate", at)) line("Estimated from", pair.map((one) => word(model, "estimate", one)));
  if (pair.length > 1) made("p", comparison(model, at, other), panel);
}

function fillTable(state) {
  const { model, view, table } = state;
  const place = table.querySelector(".rows");
  place.replaceChildren();
  if (!table.open) return;
  const shown = [];
  for (const queue of model.queues) {
    for (let next = firstAfter(model, queue, view.from); next < queue.length; next++) {
      if (model.bars.start[queue[next]] > view.to) break;
      if (shown.push(queue[next]) > TABLE_ROWS) break;
    }
  }
  const cut = shown.length > TABLE_ROWS;
  if (cut) made("p", `The first ${TABLE_ROWS}; zoom in for others, or download all as CSV.`, place);
  const grid = made("table", undefined, place);
  const head = made("tr", undefined, made("thead", undefined, grid));
  ["lane", "task", "place", "start", "time", "rate", "waited before it"].forEach((text) => {
    made("th", text, head).scope = "col";
  });
  const body = made("tbody", undefined, grid);
  for (const at of shown.slice(0, TABLE_ROWS)) {
    const row = made("tr", undefined, body);
    [
      rowName(rowOf(model, at)), word(model, "name", at), word(model, "place", at),
      ms(model.bars.start[at]), ms(model.bars.length[at]), rate(model, at), waitText(model, at),
    ].forEach((text) => made("td", text, row));
  }
}
