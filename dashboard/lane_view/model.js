// What the page sends, bars by row, and texts about bars and gaps. Times are milliseconds.

const FADED = 1, LATE = 2, EARLY = 4;

// JSON after its length in 8 bytes, then the columns of the bars as arrays.
function readModel(bytes) {
  const buffer = bytes.slice().buffer;
  const length = new DataView(buffer).getUint32(0, true);
  const found = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const bars = (found.bars = {});
  let at = 8 + length;
  for (const [names, Column] of [[found.numbers, Float64Array], [found.positions, Int32Array]]) {
    for (const name of names) {
      bars[name] = new Column(buffer, at, found.count);
      at += bars[name].byteLength;
    }
  }
  found.queues = found.rows.map(() => []);
  for (let at = 0; at < found.count; at++) found.queues[bars.row[at]].push(at);
  found.total = Math.max(...found.ends.map((end) => end.ms), 1e-6);
  found.hidden = new Set();
  return found;
}

const end = (model, at) => model.bars.start[at] + model.bars.length[at];
const word = (model, column, at) => model.words[model.bars[column][at]];
const kindOf = (model, at) => model.kinds[model.bars.kind[at]];
const rowOf = (model, at) => model.rows[model.bars.row[at]];
const rowName = (row) => (row.source ? `${row.lane} ${row.source}` : row.lane);

// Position in a queue of the first bar that ends after a time.
function firstAfter(model, queue, time) {
  let low = 0, high = queue.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (end(model, queue[middle]) > time) high = middle;
    else low = middle + 1;
  }
  return low;
}

function digits(value) {
  return value.toLocaleString("en-US", { maximumFractionDigits: value >= 100 ? 1 : value >= 1 ? 2 : 4 });
}

const ms = (value) => `${digits(value)} ms`;
const signedPercent = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(100 * value).toFixed(1)} %`;

function quantity(value, unit) {
  if (!value || !unit) return "";
  const steps = unit === "B" ? ["B", "kB", "MB", "GB", "TB"] : ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"];
  let at = 0;
  while (Math.abs(value) >= 1000 && at < steps.length - 1) { value /= 1000; at++; }
  return `${Number(value.toPrecision(4))} ${steps[at]}`;
}

const size = (model, at) => quantity(model.bars.size[at], rowOf(model, at).unit);
function rate(model, at) {
  const spent = model.bars.length[at] / 1000;
  const text = spent > 0 ? quantity(model.bars.size[at] / spent, rowOf(model, at).unit) : "";
  return text ? `${text}/s` : "";
}

// Why a lane was idle before a bar, in one sentence; empty if it was not.
function waitText(model, at) {
  const { wait, pause } = model.bars, parts = [];
  const lane = rowOf(model, at).lane;
  const cause = word(model, "cause", at);
  if (wait[at] > 0 && cause) parts.push(`${ms(wait[at])}: ${lane} waits for ${cause}`);
  if (pause[at] > 0) parts.push(`${ms(pause[at])}: hand-over (launch and pause before the next task)`);
  return parts.join("\n");
}

// The gap at a time of a row: its text and ends, or null.
function gapAt(model, row, time) {
  const queue = model.queues[row];
  const next = queue[firstAfter(model, queue, time)];
  if (next === undefined) {
    const done = queue.length ? end(model, queue[queue.length - 1]) : 0;
    const over = model.ends.find((one) => one.source === model.rows[row].source);
    if (!over || time > over.ms || model.rows[row].done > done + 1e-6) return null;
    return { from: done, to: over.ms, text: `${ms(over.ms - done)}: ${model.rows[row].lane} has no more work (drained)` };
  }
  const start = model.bars.start[next];
  const from = start - model.bars.wait[next] - model.bars.pause[next];
  if (time >= start || time < from) return null;
  const text = waitText(model, next);
  return text ? { from, to: start, text } : null;
}

function barText(model, at) {
  const { partner } = model.bars, other = partner[at];
  const row = rowOf(model, at);
  const lines = [`${word(model, "name", at)}${row.source ? ` (${row.source})` : ""}`, word(model, "place", at)];
  const moved = [size(model, at), rate(model, at)].filter(Boolean).join(" at ");
  if (moved) lines.push(moved);
  lines.push(`${ms(model.bars.length[at])} from ${ms(model.bars.start[at])}`);
  if (other >= 0) lines.push(comparison(model, at, other));
  const waited = waitText(model, at);
  if (waited) lines.push(`before it: ${waited.replace("\n", ", ")}`);
  return lines.filter(Boolean).join("\n");
}

// The other run's time, and the error of the first run's.
function comparison(model, at, other) {
  const pair = model.bars.row[at] < model.bars.row[other] ? [at, other] : [other, at];
  const [first, second] = pair.map((one) => model.bars.length[one]);
  const [one, two] = pair.map((bar) => rowOf(model, bar).source);
  const off = second > 0 ? `, ${signedPercent(first / second - 1)}` : "";
  return `${one} ${ms(first)}, ${two} ${ms(second)}${off}`;
}

// How far apart the runs end: the flag at the right end.
function endText(model) {
  const [first, second] = model.ends;
  if (!second) return `ends at ${ms(first.ms)}`;
  const late = second.ms - first.ms;
  if (Math.abs(late) < 1e-6) return "both end together";
  const part = first.ms > 0 ? ` (${signedPercent(late / first.ms)})` : "";
  return `${second.source} ends ${ms(Math.abs(late))} ${late > 0 ? "later" : "earlier"}${part}`;
}

function csvOf(model) {
  const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const rounded = (time) => Number(time.toFixed(6));
  const head = "lane,run,operation,task,place,start_ms,duration_ms,size,unit,waited_ms,waited_for,pause_ms,estimate";
  const lines = [head];
  for (const queue of model.queues) {
    for (const at of queue) {
      const { bars } = model, row = rowOf(model, at);
      lines.push([
        row.lane, row.source, kindOf(model, at).name, quote(word(model, "name", at)),
        quote(word(model, "place", at)), rounded(bars.start[at]), rounded(bars.length[at]),
        bars.size[at], row.unit, rounded(bars.wait[at]), quote(word(model, "cause", at)),
        rounded(bars.pause[at]), quote(word(model, "estimate", at)),
      ].join(","));
    }
  }
  return `${lines.join("\n")}\n`;
}
