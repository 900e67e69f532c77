// Painting: rows, bars, labels, axis, flag of the ends, and the minimap.

const ROW = 26, LANE_GAP = 9, LABEL = 14, TOP = 20, AXIS = 34, NARROW = 640, MAP = 40, PAD = 8;
const LATE_COLOUR = "#c43d0a", EARLY_COLOUR = "#2f6fb3";
const UP = " \u25b2", DOWN = " \u25bc";

function themeOf(element) {
  const style = getComputedStyle(element);
  const of = (name, usual) => style.getPropertyValue(`--st-${name}`).trim() || usual;
  return {
    text: of("text-color", "#222"), back: of("background-color", "#fff"),
    soft: of("gray-text-color", "#667"), line: of("border-color", "#ccd"),
    second: of("secondary-background-color", "#eee"), primary: of("primary-color", "#0f766e"),
    font: style.fontFamily || "sans-serif",
  };
}

// Heights of the rows and the width of the labels, for a width of the page.
function layoutOf(model, width, context, font) {
  const narrow = width < NARROW;
  context.font = `12px ${font}`;
  const names = model.rows.map(rowName).map((name) => context.measureText(name).width);
  const left = narrow ? 2 : Math.ceil(Math.max(40, ...names)) + 10;
  let y = TOP;
  const rows = model.rows.map((row, at) => {
    const first = at === 0 || model.rows[at - 1].lane !== row.lane;
    if (first && at > 0) y += LANE_GAP;
    if (narrow) y += LABEL;
    const top = y;
    y += ROW;
    return top;
  });
  return { narrow, left, rows, width, right: width - PAD, axis: y + 4, height: y + 4 + AXIS };
}

const xOf = (view, layout, time) =>
  layout.left + ((time - view.from) / (view.to - view.from)) * (layout.right - layout.left);
const timeOf = (view, layout, x) =>
  view.from + ((x - layout.left) / (layout.right - layout.left)) * (view.to - view.from);

function sized(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w; canvas.height = h; canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

function paint(state) {
  const { model, view, canvas } = state;
  const width = canvas.clientWidth;
  if (!width) return;
  const theme = (state.theme = themeOf(state.root));
  const layout = (state.layout = layoutOf(model, width, canvas.getContext("2d"), theme.font));
  const context = sized(canvas, width, layout.height);
  paintAxis(context, state);
  context.save();
  context.beginPath();
  context.rect(layout.left, 0, layout.right - layout.left, layout.axis);
  context.clip();
  paintLate(context, state);
  model.queues.forEach((queue, row) => paintRow(context, state, queue, layout.rows[row]));
  if (state.gap) paintGap(context, state);
  paintMarked(context, state);
  paintEnds(context, state);
  if (state.drag) paintDrag(context, state);
  context.restore();
  paintNames(context, state);
  paintMap(state);
}

function paintNames(context, { model, layout, theme }) {
  context.font = `12px ${theme.font}`;
  context.fillStyle = theme.text;
  context.textBaseline = "middle";
  context.textAlign = layout.narrow ? "left" : "right";
  model.rows.forEach((row, at) => {
    const y = layout.rows[at];
    if (layout.narrow) context.fillText(rowName(row), 2, y - LABEL / 2 + 1);
    else context.fillText(rowName(row), layout.left - 8, y + ROW / 2);
  });
}

function paintAxis(context, { model, view, layout, theme }) {
  const step = tickStep((view.to - view.from) / Math.max(2, (layout.right - layout.left) / 90));
  context.font = `11px ${theme.font}`;
  context.textBaseline = "top";
  context.strokeStyle = theme.line;
  context.fillStyle = theme.text;
  context.lineWidth = 1;
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  for (let at = Math.ceil(view.from / step) * step; at <= view.to + 1e-9; at += step) {
    const x = Math.round(xOf(view, layout, at)) + 0.5;
    context.beginPath();
    context.moveTo(x, TOP - 4);
    context.lineTo(x, layout.axis);
    context.stroke();
    const text = at.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
    const half = context.measureText(text).width / 2;
    context.textAlign = "left";
    context.fillText(text, Math.min(Math.max(x - half, 0), layout.width - 2 * half), layout.axis + 3);
  }
  context.textAlign = "center";
  context.fillText(model.axis, (layout.left + layout.right) / 2, layout.axis + 18);
}

function tickStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least);
}

// The bars of one row; those within one pixel become one, in the colour of the longest.
function paintRow(context, state, queue, y) {
  const { model, view, layout } = state;
  const { bars, kinds, hidden } = model;
  let column = null;
  const flush = () => {
    if (!column) return;
    context.globalAlpha = column.faded ? 0.18 : 1;
    context.fillStyle = kinds[column.kind].colour;
    context.fillRect(column.x, y, 1, ROW - 2);
    column = null;
  };
  for (let place = firstAfter(model, queue, view.from); place < queue.length; place++) {
    const at = queue[place];
    if (bars.start[at] > view.to) break;
    if (hidden.has(bars.kind[at])) continue;
    const x0 = xOf(view, layout, bars.start[at]), x1 = xOf(view, layout, end(model, at));
    if (x1 - x0 < 1) {
      const x = Math.floor(x0);
      if (column && column.x !== x) flush();
      if (!column) column = { x, length: -1, kind: 0, faded: true };
      if (bars.length[at] > column.length) {
        column.length = bars.length[at];
        column.kind = bars.kind[at];
      }
      column.faded = column.faded && Boolean(bars.flags[at] & FADED);
      continue;
    }
    flush();
    paintBar(context, state, at, x0, x1, y);
  }
  flush();
  context.globalAlpha = 1;
}

function paintBar(context, state, at, x0, x1, y) {
  const { model, theme, layout } = state;
  const kind = kindOf(model, at), flags = model.bars.flags[at];
  context.globalAlpha = flags & FADED ? 0.18 : 1;
  context.fillStyle = kind.colour;
  const room = x1 - x0 > 3 ? 0.5 : 0;
  context.fillRect(x0 + room, y, x1 - x0 - 2 * room, ROW - 2);
  if (flags & (LATE | EARLY) && x1 - x0 > 3) {
    context.strokeStyle = flags & LATE ? LATE_COLOUR : EARLY_COLOUR;
    context.lineWidth = 2;
    context.strokeRect(x0 + 1, y + 1, Math.max(1, x1 - x0 - 2), ROW - 4);
  }
  const from = Math.max(x0, layout.left), to = Math.min(x1, layout.right);
  if (to - from < 18) return;
  context.font = `11px ${theme.font}`;
  const mark = flags & LATE ? UP : flags & EARLY ? DOWN : "";
  const label = [`${kind.name}${mark}  ${ms(model.bars.length[at])}`, `${kind.name}${mark}`]
    .find((text) => widthOf(state, context, text) < to - from - 6);
  if (!label) return;
  context.fillStyle = kind.ink;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(label, (from + to) / 2, y + ROW / 2 - 1);
}

function widthOf(state, context, text) {
  let width = state.widths.get(text);
  if (width === undefined) state.widths.set(text, (width = context.measureText(text).width));
  return width;
}

function paintGap(context, { view, layout, theme, gap }) {
  const x0 = xOf(view, layout, gap.from), x1 = xOf(view, layout, gap.to);
  context.setLineDash([4, 3]);
  context.strokeStyle = theme.text;
  context.lineWidth = 1.5;
  context.strokeRect(x0 + 1, layout.rows[gap.row] + 1, Math.max(1, x1 - x0 - 2), ROW - 4);
  context.setLineDash([]);
}

// The bar under the pointer or chosen, its partner, and lines that join both.
function paintMarked(context, state) {
  const { model, view, layout, theme } = state;
  for (const at of new Set([state.chosen, state.hovered])) {
    if (at < 0) continue;
    const other = model.bars.partner[at];
    const boxes = [at, other].filter((one) => one >= 0).map((one) => ({
      x0: xOf(view, layout, model.bars.start[one]), x1: xOf(view, layout, end(model, one)),
      y: layout.rows[model.bars.row[one]],
    }));
    context.strokeStyle = theme.text;
    context.lineWidth = at === state.chosen ? 2.5 : 1.5;
    for (const box of boxes) context.strokeRect(box.x0, box.y - 1, Math.max(2, box.x1 - box.x0), ROW);
    if (boxes.length < 2) continue;
    const [upper, lower] = boxes.sort((a, b) => a.y - b.y);
    context.lineWidth = 1;
    for (const side of ["x0", "x1"]) {
      context.beginPath();
      context.moveTo(upper[side], upper.y + ROW - 1);
      context.lineTo(lower[side], lower.y - 1);
      context.stroke();
    }
  }
}

// The time between the ends of two runs.
function paintLate(context, { model, view, layout }) {
  const xs = model.ends.map((one) => xOf(view, layout, one.ms));
  if (xs.length < 2) return;
  context.globalAlpha = 0.16;
  context.fillStyle = xs[1] > xs[0] ? LATE_COLOUR : EARLY_COLOUR;
  context.fillRect(Math.min(...xs), TOP - 4, Math.abs(xs[1] - xs[0]), layout.axis - TOP + 4);
  context.globalAlpha = 1;
}

// Where each run ends, and by how much they differ.
function paintEnds(context, { model, view, layout, theme }) {
  const xs = model.ends.map((one) => xOf(view, layout, one.ms));
  context.font = `600 11px ${theme.font}`;
  context.textBaseline = "top";
  context.fillStyle = theme.text;
  context.strokeStyle = theme.text;
  context.lineWidth = 1;
  xs.forEach((x, at) => {
    context.setLineDash(at ? [] : [3, 3]);
    context.beginPath();
    context.moveTo(x, TOP - 4);
    context.lineTo(x, layout.axis);
    context.stroke();
  });
  context.setLineDash([]);
  const last = Math.max(...xs);
  if (last < layout.left || last > layout.right + 2) return;
  const text = endText(model), width = context.measureText(text).width;
  context.textAlign = "left";
  context.fillText(text, Math.max(layout.left, Math.min(last - width, layout.right - width)), 2);
}

function paintDrag(context, { layout, theme, drag }) {
  context.globalAlpha = 0.25;
  context.fillStyle = theme.primary;
  context.fillRect(Math.min(drag.x, drag.to), TOP - 4, Math.abs(drag.to - drag.x), layout.axis - TOP + 4);
  context.globalAlpha = 1;
}

function paintMap(state) {
  const { model, view, layout, theme, map } = state;
  const whole = { from: 0, to: model.total };
  const context = sized(map, layout.width, MAP);
  const key = `${layout.width} ${theme.back} ${[...model.hidden]} ${window.devicePixelRatio}`;
  if (state.mapKey !== key) {
    state.mapKey = key;
    state.mapPicture = document.createElement("canvas");
    const small = sized(state.mapPicture, layout.width, MAP);
    small.fillStyle = theme.second;
    small.fillRect(layout.left, 0, layout.right - layout.left, MAP);
    const height = (MAP - 4) / model.rows.length;
    model.queues.forEach((queue, row) => {
      let until = -1;
      for (const at of queue) {
        if (model.hidden.has(model.bars.kind[at])) continue;
        const x1 = xOf(whole, layout, end(model, at));
        if (x1 < until) continue;
        const x0 = Math.max(until, xOf(whole, layout, model.bars.start[at]));
        until = x0 + Math.max(0.6, x1 - x0);
        small.globalAlpha = model.bars.flags[at] & FADED ? 0.18 : 1;
        small.fillStyle = kindOf(model, at).colour;
        small.fillRect(x0, 2 + row * height, until - x0, Math.max(1, height - 1));
      }
    });
  }
  context.drawImage(state.mapPicture, 0, 0, layout.width, MAP);
  const x0 = xOf(whole, layout, view.from), x1 = xOf(whole, layout, view.to);
  context.globalAlpha = 0.65;
  context.fillStyle = theme.back;
  context.fillRect(layout.left, 0, x0 - layout.left, MAP);
  context.fillRect(x1, 0, layout.right - x1, MAP);
  context.globalAlpha = 1;
  context.strokeStyle = theme.primary;
  context.lineWidth = 2;
  context.strokeRect(x0 + 1, 1, Math.max(2, x1 - x0 - 2), MAP - 2);
}
