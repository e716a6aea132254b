// Charts of "Corpus statistics" as plain SVG: each function takes rows and a width and returns an element. No state, no fetching.

import { count, el, percent, svg, tipped } from "./dom.js";

export const ENDS = ["kept", "held_out", "contaminated", "duplicate", "rejected"]; // of every landed document, in the order of the bars
export const FUNNEL = ["landed", "rejected", "duplicate", "contaminated", "held_out", "kept"];
export const MEASURES = { documents: "Documents", bytes: "Bytes", tokens: "Tokens" };
const DAY = 86_400_000, NARROWEST = 5, MOST = 12;

export const sum = (funnel, end, measure) => funnel.reduce((total, row) => total + row[end][measure], 0);
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const text = (day) => new Date(day * DAY).toISOString().slice(0, 10);
const exact = (n) => n.toLocaleString("en");

// One bar per bin of days; bins are as short as leaves each bar its least width, so days without data stay visible as gaps.
export function bins(funnel, room) {
  const at = (row) => Math.round(Date.parse(`${row.day}T00:00:00Z`) / DAY);
  const first = Math.min(...funnel.map(at)), last = Math.max(...funnel.map(at));
  const days = Math.max(1, Math.ceil(((last - first + 1) * NARROWEST) / room));
  const found = Array.from({ length: Math.floor((last - first) / days) + 1 }, (_, i) => ({ from: first + i * days, to: Math.min(last, first + (i + 1) * days - 1), rows: [] }));
  for (const row of funnel) found[Math.floor((at(row) - first) / days)].rows.push(row);
  return found;
}

// From 0 to at least `most` in three to six round steps.
function round(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, most) / 4));
  const step = Math.max(1, [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s * 5 >= most) ?? most);
  return Array.from({ length: Math.max(1, Math.ceil(most / step)) + 1 }, (_, i) => i * step);
}

const axis = (ticks, y, left, width, label) => ticks.map((t) => [svg("line", { x1: left, x2: width - 8, y1: y(t), y2: y(t), class: "grid" }),
  svg("text", { x: left - 8, y: y(t), "text-anchor": "end", "dominant-baseline": "central" }, label(t))]);

export function byDay(funnel, { width, measure, share }) {
  const ends = measure === "tokens" ? ["kept", "held_out"] : ENDS;
  const height = width < 520 ? 230 : 280, left = 52, top = 12, bottom = height - 28, room = width - left - 8;
  const found = bins(funnel, room).map((bin) => ({ ...bin, parts: ends.map((end) => sum(bin.rows, end, measure)) })).map((bin) => ({ ...bin, total: bin.parts.reduce((a, b) => a + b, 0) }));
  const ticks = share ? [0, 0.25, 0.5, 0.75, 1] : round(Math.max(...found.map((bin) => bin.total)));
  const most = ticks.at(-1), step = room / found.length;
  const y = (v) => bottom - (v / most) * (bottom - top), w = Math.min(60, Math.max(1, step * (step > 8 ? 0.8 : 0.9)));
  const label = (v) => (share ? percent(v, 0) : count(v));
  const every = Math.max(1, Math.ceil(found.length / Math.max(1, Math.floor(room / 92)))), middle = step >= 80;
  const named = found.map((bin, i) => [bin, i]).filter(([, i]) => i % every === 0 && (middle || i === 0 || (found.length - i) * step >= 76));
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${MEASURES[measure]} by day and end; the same numbers are in the table` },
    axis(ticks, y, left, width, label),
    named.map(([bin, i]) => svg("text", { x: left + (middle ? i + 0.5 : i) * step, y: height - 8, "text-anchor": middle ? "middle" : "start" }, text(bin.from))),
    found.map((bin, i) => bin.rows.length > 0 && column(bin, left + (i + 0.5) * step - w / 2, w, (v) => y(share && bin.total ? v / bin.total : v), ends, measure)));
}

function column(bin, x, w, y, ends, measure) {
  const days = new Set(bin.rows.map((row) => row.day)).size;
  const lines = [bin.from === bin.to ? text(bin.from) : `${text(bin.from)} to ${text(bin.to)}, ${days} ${days === 1 ? "day" : "days"} with data`,
    ...ends.map((end, i) => `${end.replace("_", " ")}: ${exact(bin.parts[i])} ${measure}${bin.total ? ` (${percent(bin.parts[i] / bin.total)})` : ""}`)];
  let at = 0;
  return svg("g", { class: "column", role: "img", "data-from": text(bin.from), "data-to": text(bin.to), ...tipped(lines) },
    ends.map((end, i) => { const low = y(at), high = y((at += bin.parts[i])); return bin.parts[i] > 0 && svg("rect", { x, width: w, y: high, height: Math.max(0, low - high), class: `end end-${end}` }); }),
    svg("rect", { x, width: w, y: y(bin.total), height: Math.max(6, y(0) - y(bin.total)), class: "hit" }));
}

// A row per source, its ends as shares; the sources with the most documents, the rest in one row.
export function shares(funnel, width) {
  const bySource = new Map();
  for (const row of funnel) bySource.set(row.source, [...(bySource.get(row.source) ?? []), row]);
  const sorted = [...bySource].sort(([, a], [, b]) => sum(b, "landed", "documents") - sum(a, "landed", "documents"));
  const shown = sorted.slice(0, MOST), rest = sorted.slice(MOST);
  if (rest.length) shown.push([`${rest.length} other sources`, rest.flatMap(([, rows]) => rows)]);
  const row = 32, left = Math.min(170, width * 0.34), right = 62, height = shown.length * row + 4, room = width - left - right;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Share of each end by source" },
    shown.map(([source, rows], i) => {
      const landed = sum(rows, "landed", "documents"), top = i * row + 6, name = source || "(unknown)";
      let at = left;
      const lines = [name, `${exact(landed)} documents landed`, ...ENDS.map((end) => `${end.replace("_", " ")}: ${exact(sum(rows, end, "documents"))}${landed ? ` (${percent(sum(rows, end, "documents") / landed)})` : ""}`)];
      return svg("g", { class: "source", "data-name": source, ...tipped(lines), role: "img" }, svg("rect", { x: 0, y: top - 4, width, height: row - 2, class: "hit" }),
        svg("text", { x: left - 10, y: top + 10, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(name, Math.floor(left / 7.5))),
        ENDS.map((end) => { const w = landed ? (sum(rows, end, "documents") / landed) * room : 0, x = at; at += w; return w > 0 && svg("rect", { x, y: top, width: w, height: 20, class: `end end-${end}` }); }),
        svg("text", { x: width - 4, y: top + 10, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, count(landed)));
    }));
}

// Bars of the buckets with the most documents. `whole`: what shares are of (default: all buckets together).
export function ranked(rows, { width, whole, of, unknown = "unknown", empty }) {
  if (!rows.length) return el("p", { class: "empty" }, empty);
  const sorted = [...rows].sort((a, b) => b.documents - a.documents), shown = sorted.slice(0, MOST), rest = sorted.slice(MOST);
  const total = whole ?? rows.reduce((n, r) => n + r.documents, 0), most = Math.max(...shown.map((r) => r.documents)) || 1;
  const row = 28, left = Math.min(260, width * 0.46), right = 66, room = Math.max(20, width - left - right), height = shown.length * row + 4;
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Documents by bucket, most first" },
    shown.map((r, i) => {
      const name = r.bucket || unknown, top = i * row + 4;
      return svg("g", { class: "bucket", "data-name": r.bucket, role: "img", ...tipped([name, `${exact(r.documents)} documents${total ? `, ${percent(r.documents / total)} of ${of}` : ""}`]) },
        svg("rect", { x: 0, y: top - 2, width, height: row - 2, class: "hit" }),
        svg("text", { x: left - 10, y: top + 10, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(name, Math.floor(left / 7.2))),
        svg("rect", { x: left, y: top + 2, width: Math.max(1, (r.documents / most) * room), height: 16, rx: 2, class: "value-bar" }),
        svg("text", { x: width - 4, y: top + 10, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, count(r.documents)));
    }));
  return rest.length ? [chart, el("p", { class: "small" }, `${rest.length} more with ${exact(rest.reduce((n, r) => n + r.documents, 0))} documents; the CSV file has all.`)] : chart;
}

// Histograms over powers of two, side by side on one axis. `series`: [name, rows with the least length as bucket].
export function lengths(series, width) {
  const all = series.flatMap(([, rows]) => rows.map((r) => Number(r.bucket))).filter((n) => n > 0);
  if (!all.length) return el("p", { class: "empty" }, "No document has a length to show.");
  const low = Math.log2(Math.min(...all)), high = Math.log2(Math.max(...all)), n = Math.round(high - low) + 1;
  const height = 220, left = 48, top = 10, bottom = height - 28, step = (width - left - 8) / n;
  const ticks = round(Math.max(...series.flatMap(([, rows]) => rows.map((r) => r.documents)))), most = ticks.at(-1), y = (v) => bottom - (v / most) * (bottom - top);
  const w = Math.max(1, (step * 0.86) / series.length), every = Math.ceil(n / Math.max(1, Math.floor((width - left) / 46)));
  const name = (exponent) => (exponent >= 10 ? `${2 ** (exponent % 10)}${["", "Ki", "Mi", "Gi"][Math.floor(exponent / 10)] ?? "Ti"}` : String(2 ** exponent));
  const bars = series.flatMap(([what, rows], s) => rows.map((r) => {
    const i = Math.round(Math.log2(Number(r.bucket)) - low), x = left + i * step + step * 0.07 + s * w;
    return svg("g", { class: "length", "data-name": `${what} ${r.bucket}`, role: "img", ...tipped([`${exact(Number(r.bucket))} to ${exact(2 * Number(r.bucket) - 1)}`, `${what}: ${exact(r.documents)} documents`]) },
      svg("rect", { x, width: w, y: y(r.documents), height: Math.max(1, bottom - y(r.documents)), class: `of-${what}` }));
  }));
  const names = Array.from({ length: n }, (_, i) => i % every === 0 && svg("text", { x: left + (i + 0.5) * step, y: height - 8, "text-anchor": "middle" }, name(Math.round(low) + i)));
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Documents by length" }, axis(ticks, y, left, width, count), names, bars);
  return series.length > 1 ? [chart, el("ul", { class: "legend" }, series.map(([what]) => el("li", null, el("span", { class: `key of-${what}` }), what)))] : chart;
}
