// Keys, wheel, pointer and buttons.

const STEP = 1.35, SHIFT = 0.18, CLICK_PX = 4, NEAR_PX = 3;

function setView(state, from, to) {
  const { model } = state;
  const shortest = model.total * 1e-6;
  const length = Math.min(Math.max(to - from, shortest), model.total);
  from = Math.min(Math.max(from, 0), model.total - length);
  state.view = { from, to: from + length };
  keepZoom(state);
  request(state);
}

function zoom(state, factor, x) {
  const { view, layout } = state;
  const centre = timeOf(view, layout, x ?? (layout.left + layout.right) / 2);
  setView(state, centre - (centre - view.from) * factor, centre + (view.to - centre) * factor);
}

function pan(state, part) {
  const by = (state.view.to - state.view.from) * part;
  setView(state, state.view.from + by, state.view.to + by);
}

// The bar at a place of the canvas and its row; -1 where there is none.
function barAt(state, x, y) {
  const { model, layout, view } = state;
  const row = layout.rows.findIndex((top) => y >= top - 1 && y < top + ROW);
  if (row < 0 || x < layout.left) return { row: -1, at: -1 };
  const queue = model.queues[row];
  const time = timeOf(view, layout, x);
  const place = firstAfter(model, queue, time);
  const near = [queue[place], queue[place - 1]].filter((at) => at !== undefined);
  const found = near.find((at) => {
    const x0 = xOf(view, layout, model.bars.start[at]), x1 = xOf(view, layout, end(model, at));
    const slack = x1 - x0 < 2 * NEAR_PX ? NEAR_PX : 0;
    return x >= x0 - slack && x <= x1 + slack && !model.hidden.has(model.bars.kind[at]);
  });
  return { row, at: found ?? -1, time };
}

function hover(state, x, y) {
  const { row, at, time } = barAt(state, x, y);
  const gap = row >= 0 && at < 0 ? gapAt(state.model, row, time) : null;
  state.gap = gap && { ...gap, row };
  state.hovered = at;
  const text = at >= 0 ? barText(state.model, at) : gap ? gap.text : "";
  showTip(state, text, x, row);
  request(state);
}

function showTip(state, text, x, row) {
  const { tip, layout } = state;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const other = state.hovered >= 0 ? state.model.bars.partner[state.hovered] : -1;
  const below = Math.max(row, other >= 0 ? state.model.bars.row[other] : row);
  tip.style.top = `${layout.rows[below] + ROW + 6}px`;
  tip.style.left = `${Math.max(0, Math.min(x - 20, layout.width - tip.offsetWidth - 4))}px`;
}

function choose(state, at) {
  state.chosen = at;
  explain(state);
  request(state);
}

// The next bar in the row, or the one at the same time in the next row.
function move(state, key) {
  const { model, view } = state;
  let at = state.chosen;
  if (at < 0) {
    const queue = model.queues.find((one) => one.length);
    if (queue) reveal(state, queue[Math.min(firstAfter(model, queue, view.from), queue.length - 1)]);
    return;
  }
  const row = model.bars.row[at];
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const queue = model.queues[row];
    const place = queue.indexOf(at) + (key === "ArrowRight" ? 1 : -1);
    if (queue[place] !== undefined) reveal(state, queue[place]);
    return;
  }
  const by = key === "ArrowDown" ? 1 : -1;
  for (let next = row + by; next >= 0 && next < model.queues.length; next += by) {
    const queue = model.queues[next];
    if (!queue.length) continue;
    const same = model.bars.partner[at];
    if (same >= 0 && model.bars.row[same] === next) return reveal(state, same);
    return reveal(state, queue[Math.min(firstAfter(model, queue, model.bars.start[at]), queue.length - 1)]);
  }
}

function reveal(state, at) {
  const { model, view } = state;
  const middle = model.bars.start[at] + model.bars.length[at] / 2;
  if (middle < view.from || middle > view.to) {
    const half = (view.to - view.from) / 2;
    setView(state, middle - half, middle + half);
  }
  choose(state, at);
}

function onKey(state, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const x = state.pointer;
  const done = {
    w: () => zoom(state, 1 / STEP, x), s: () => zoom(state, STEP, x),
    "+": () => zoom(state, 1 / STEP, x), "-": () => zoom(state, STEP, x),
    a: () => pan(state, -SHIFT), d: () => pan(state, SHIFT),
    0: () => setView(state, 0, state.model.total), Home: () => setView(state, 0, state.model.total),
    Escape: () => choose(state, -1), Enter: () => choose(state, state.hovered),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (done) done();
  else if (event.key.startsWith("Arrow")) move(state, event.key);
  else return;
  event.preventDefault();
}

// A wheel zooms with Ctrl, or once the chart has the focus; else the page scrolls.
function onWheel(state, event) {
  const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
  const focused = state.root.getRootNode().activeElement === state.canvas;
  if (!sideways && !event.ctrlKey && !focused) return;
  event.preventDefault();
  const amount = Math.max(-480, Math.min(480, event.deltaY || event.deltaX));
  if (sideways) pan(state, (SHIFT * (event.deltaX || event.deltaY)) / 120);
  else zoom(state, STEP ** (amount / 120), event.offsetX);
}

function listen(state) {
  const { canvas, map } = state;
  canvas.addEventListener("keydown", (event) => onKey(state, event));
  canvas.addEventListener("wheel", (event) => onWheel(state, event), { passive: false });
  canvas.addEventListener("dblclick", () => setView(state, 0, state.model.total));
  canvas.addEventListener("pointerleave", () => {
    state.pointer = undefined;
    hover(state, -1, -1);
  });
  listenDrag(state);
  const jump = (event) => {
    const time = timeOf({ from: 0, to: state.model.total }, state.layout, event.offsetX);
    const half = (state.view.to - state.view.from) / 2;
    setView(state, time - half, time + half);
  };
  map.addEventListener("pointerdown", (event) => {
    map.setPointerCapture(event.pointerId);
    jump(event);
  });
  map.addEventListener("pointermove", (event) => event.buttons && jump(event));
  const doing = {
    in: () => zoom(state, 1 / STEP), out: () => zoom(state, STEP),
    left: () => pan(state, -SHIFT), right: () => pan(state, SHIFT),
    all: () => setView(state, 0, state.model.total),
    png: () => state.canvas.toBlob((blob) => save(blob, "timeline.png")),
    csv: () => save(new Blob([csvOf(state.model)], { type: "text/csv" }), "timeline.csv"),
  };
  for (const button of state.root.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => doing[button.dataset.do]());
  }
}

// Drag: choose a time to zoom to; with Shift or a finger: move. Two fingers: zoom.
function listenDrag(state) {
  const { canvas } = state;
  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event.offsetX);
    state.press = { x: event.offsetX, y: event.offsetY, view: state.view };
    if (event.pointerType === "mouse" && !event.shiftKey) state.drag = { x: event.offsetX, to: event.offsetX };
  });
  canvas.addEventListener("pointermove", (event) => {
    state.pointer = event.offsetX;
    if (!fingers.has(event.pointerId)) return hover(state, event.offsetX, event.offsetY);
    const before = spread(fingers);
    fingers.set(event.pointerId, event.offsetX);
    if (fingers.size > 1) return zoom(state, before / spread(fingers), middleOf(fingers));
    if (state.drag) {
      state.drag.to = event.offsetX;
      return request(state);
    }
    const { press, layout } = state;
    const by = timeOf(press.view, layout, press.x) - timeOf(press.view, layout, event.offsetX);
    return setView(state, press.view.from + by, press.view.to + by);
  });
  const release = (event) => {
    if (!fingers.delete(event.pointerId) || fingers.size) return;
    const { drag, press } = state;
    state.drag = null;
    if (Math.abs(event.offsetX - press.x) < CLICK_PX) {
      hover(state, event.offsetX, event.offsetY);
      choose(state, state.hovered);
    } else if (drag) {
      const times = [drag.x, drag.to].map((x) => timeOf(state.view, state.layout, x));
      setView(state, Math.min(...times), Math.max(...times));
    }
    request(state);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
}

function spread(fingers) {
  const xs = [...fingers.values()];
  return Math.max(20, Math.max(...xs) - Math.min(...xs));
}

function middleOf(fingers) {
  const xs = [...fingers.values()];
  return xs.reduce((sum, x) => sum + x, 0) / xs.length;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
