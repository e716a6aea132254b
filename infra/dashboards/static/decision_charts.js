// Charts of money: over time, against a budget, per point gained. Each takes rows and a width and returns an element. No state, no fetching.

import { axisMoney, cut, scale } from "./charts.js";
import { el, isNumber, MISSING, percent, svg, tipped, usd } from "./dom.js";

export const SPEND_PHASES = {
  prepare: "Prepare data", proxy: "Forecast proxies", train: "Train", eval: "Evaluate and review", register: "Register", checks: "Checks", idle: "Idle", storage: "Storage",
};
const ORDER = Object.keys(SPEND_PHASES);
const MOST_COLUMNS = 40;
export const phaseClass = (phase) => `phase-${ORDER.includes(phase) ? phase : "other"}`;

const DAY = 86400000;
const start = { day: (d) => d, week: (d) => new Date(d - ((d.getUTCDay() + 6) % 7) * DAY), month: (d) => new Date(Date.UTC(d.getUTCFullYear(), d.getUTCMonth(), 1)) };

// Days, weeks from Monday, or months: the first that gives at most 40 columns (months however many). As jobs/report_figures.py has it.
export function buckets(rows) {
  const days = rows.map((r) => r.day).sort();
  const span = days.length ? (Date.parse(days.at(-1)) - Date.parse(days[0])) / DAY + 1 : 0;
  const unit = span <= MOST_COLUMNS ? "day" : span <= 7 * (MOST_COLUMNS - 1) ? "week" : "month";
  const found = new Map();
  for (const row of rows) {
    const key = start[unit](new Date(row.day)).toISOString().slice(0, 10);
    if (!found.has(key)) found.set(key, { key, usd: 0, wasted: 0, phases: {} });
    const at = found.get(key);
    at.usd += row.usd;
    at.wasted += row.wasted_usd;
    at.phases[row.phase] = (at.phases[row.phase] ?? 0) + row.usd;
  }
  return { unit, columns: [...found.values()].sort((a, b) => (a.key < b.key ? -1 : 1)) };
}

const ranked = (phases) => Object.keys(phases).sort((a, b) => (ORDER.indexOf(a) + 1 || 99) - (ORDER.indexOf(b) + 1 || 99));

function dollars(y, left, right, width) {
  return y.ticks(5).map((t) => [
    svg("line", { x1: left, x2: width - right, y1: y(t), y2: y(t), class: "grid" }),
    svg("text", { x: left - 8, y: y(t), "text-anchor": "end", "dominant-baseline": "central" }, axisMoney(t)),
  ]);
}

export function spendColumns(rows, width) {
  if (!rows.length) return el("p", { class: "empty" }, "No charge is recorded here.");
  const { unit, columns } = buckets(rows), height = 240, left = 58, right = 10, bottom = 38;
  const most = Math.max(...columns.map((c) => Object.values(c.phases).reduce((sum, x) => sum + Math.max(0, x), 0))) || 1;
  const y = scale(0, most * 1.05, height - bottom, 10), step = (width - left - right) / columns.length;
  const every = Math.max(1, Math.ceil(columns.length / Math.max(2, Math.floor(width / 90))));
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Dollars by ${unit} and phase, a column each` },
    dollars(y, left, right, width),
    columns.map((c, i) => {
      const x = left + i * step + step * 0.14, w = Math.min(step * 0.72, 44);
      let at = 0;
      const lines = [`${unit === "day" ? "" : `${unit} of `}${c.key}: ${usd(c.usd)}`, ...ranked(c.phases).map((p) => `${SPEND_PHASES[p] ?? p}: ${usd(c.phases[p])}`), `Wasted: ${usd(c.wasted)}`];
      const parts = ranked(c.phases).map((phase) => {
        const from = at, worth = Math.max(0, c.phases[phase]);
        at += worth;
        return svg("rect", { x, width: w, y: y(at), height: Math.max(0.3, y(from) - y(at)), class: phaseClass(phase), "data-phase": phase, "data-usd": c.phases[phase] });
      });
      return svg("g", { class: "column", "data-bucket": c.key, role: "img", ...tipped(lines) }, svg("rect", { x, width: w, y: 10, height: height - bottom - 10, class: "hit" }), parts,
        c.wasted > 0 && svg("rect", { x: x - step * 0.1, width: Math.max(2, step * 0.07), y: y(c.wasted), height: y(0) - y(c.wasted), class: "wasted-bar" }),
        i % every === 0 && svg("text", { x: x + w / 2, y: height - 20, "text-anchor": "middle" }, unit === "month" ? c.key.slice(0, 7) : c.key.slice(5)));
    }),
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "axis-label" }, `by ${unit}, UTC`));
}

// This month's spending added up by day; the projection at this pace is dashed, the budget a thick line.
export function budgetLine(rows, width) {
  if (!rows.length) return el("p", { class: "empty" }, "Nothing to show.");
  const first = rows[0], last = rows.at(-1), height = 200, left = 58, right = 14, bottom = 38;
  const days = new Date(Date.UTC(Number(first.month.slice(0, 4)), Number(first.month.slice(5)), 0)).getUTCDate();
  const top = Math.max(first.projected_usd, last.so_far_usd, first.limit_usd ?? 0) || 1;
  const x = scale(0, days, left, width - right), y = scale(0, top * 1.08, height - bottom, 10);
  const path = `M${x(0)} ${y(0)}${rows.map((r) => `H${x(Number(r.day.slice(8)))}V${y(r.so_far_usd)}`).join("")}`;
  const lines = [first.recipe ?? "All recipes", `${first.month}: ${usd(last.so_far_usd)} so far`, `At this pace by its end: ${usd(first.projected_usd)}`, `Budget: ${isNumber(first.limit_usd) ? usd(first.limit_usd) : "none"} (${first.level})`];
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", class: "budget", ...tipped(lines) },
    dollars(y, left, right, width), svg("path", { d: path, class: "so-far" }),
    svg("line", { x1: x(Number(last.day.slice(8))), y1: y(last.so_far_usd), x2: x(days), y2: y(first.projected_usd), class: "projected" }),
    isNumber(first.limit_usd) && svg("line", { x1: left, x2: width - right, y1: y(first.limit_usd), y2: y(first.limit_usd), class: "limit" }),
    [5, 10, 15, 20, 25, 30].filter((d) => d <= days).map((d) => svg("text", { x: x(d), y: height - 20, "text-anchor": "middle" }, d)),
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "axis-label" }, `day of ${first.month}`));
}

// Points gained over the champion of then, with 95 % intervals around the line of no gain, and what a point cost.
export function gainRows(runs, width, label) {
  if (!runs.length) return el("p", { class: "empty" }, "No run can be compared with a champion before it: the first one has none, others answered another suite.");
  const rows = runs.map((r) => {
    const per = isNumber(r.usd_per_point) ? `${usd(r.usd_per_point)} a point` : "nothing gained";
    return {
      name: label(r), at: r.gain_points, low: r.gain_low, high: r.gain_high, mark: r.gain_points > 0 ? "gained" : "lost", kind: "gain", data: { "data-run": r.run_id },
      end: isNumber(r.usd_per_point) ? `${usd(r.usd_per_point)}/pt` : "no gain",
      lines: [label(r), `${signed(r.gain_points)} points over champion v${r.champion_before} (95 %: ${signed(r.gain_low)} to ${signed(r.gain_high)})`, `${usd(r.cost_usd)}: ${per}`, r.run_id],
    };
  });
  return intervalRows(rows, width, { about: "Points gained over the champion of then", left: Math.min(150, width * 0.3) });
}

// A row per entry: its interval around no difference, and in words at its end.
export function intervalRows(rows, width, { about, left }) {
  const step = 34, right = 96, height = rows.length * step + 24;
  const x = scale(Math.min(0, ...rows.map((r) => r.low)), Math.max(0, ...rows.map((r) => r.high)), left, width - right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": about },
    x.ticks(width < 520 ? 3 : 6).map((t) => [svg("line", { x1: x(t), x2: x(t), y1: 0, y2: height - 20, class: t === 0 ? "zero" : "grid" }), svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, t)]),
    rows.map((r, i) => {
      const mid = i * step + 18;
      return svg("g", { class: r.kind, ...r.data, role: "img", ...tipped(r.lines) }, svg("rect", { x: 0, y: mid - 16, width, height: step - 2, class: "hit" }),
        svg("text", { x: left - 10, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(r.name, Math.floor(left / 7.5))),
        svg("line", { x1: x(r.low), x2: x(r.high), y1: mid, y2: mid, class: "error" }), svg("circle", { cx: x(r.at), cy: mid, r: 5, class: r.mark }),
        svg("text", { x: width - 2, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, r.end));
    }));
}

export const signed = (x) => (isNumber(x) ? `${x >= 0 ? "+" : "−"}${Math.abs(x).toFixed(1)}` : MISSING);

// Share of outcomes inside their intervals, with Wilson's interval, beside the 95 % that were claimed.
export function coverageRows(metrics, width, names) {
  if (!metrics.length) return el("p", { class: "empty" }, "No forecast has come out yet.");
  const row = 36, left = Math.min(140, width * 0.32), right = 62, height = metrics.length * row + 22, x = scale(0, 1, left, width - right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Coverage of past forecasts by metric" },
    [0, 0.5, 0.95].map((t) => [svg("line", { x1: x(t), x2: x(t), y1: 0, y2: height - 20, class: t === 0.95 ? "zero" : "grid" }), svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, percent(t, 0))]),
    metrics.map((m, i) => {
      const mid = i * row + 18, name = names[m.metric] ?? m.metric;
      const lines = [name, `${m.inside} of ${m.n} outcomes inside their 95 % intervals`, `Coverage ${percent(m.coverage)} (95 %: ${percent(m.coverage_low)} to ${percent(m.coverage_high)}), ${m.verdict}`,
        `Bias ${percent(m.bias)}, mean error ${percent(m.error)}, median width ${percent(m.sharpness)}`, `Nearer than the naive forecast: ${m.beats_naive} of ${m.compared}`];
      return svg("g", { class: "coverage", "data-coverage": m.metric, role: "img", ...tipped(lines) }, svg("rect", { x: 0, y: mid - 17, width, height: row - 2, class: "hit" }),
        svg("text", { x: left - 10, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(name, Math.floor(left / 7.5))),
        svg("line", { x1: x(m.coverage_low), x2: x(m.coverage_high), y1: mid, y2: mid, class: "error" }), svg("circle", { cx: x(m.coverage), cy: mid, r: 5, class: m.check_passed ? "gained" : "lost" }),
        svg("text", { x: width - 2, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, `${m.inside}/${m.n} ${m.check_passed ? "✓" : "✗"}`));
    }));
}
