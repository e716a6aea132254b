// Charts as plain SVG: each function takes data and a width and returns an element. No state, no fetching.

import { count, el, isNumber, MISSING, nats, percent, seconds, svg, tipped, usd } from "./dom.js";

export const PHASES = { prepare: "Prepare data", proxy: "Forecast proxies", train: "Train", eval: "Evaluate and review", register: "Register" };
const PHASE_OF = {
  ingest: "prepare", clean: "prepare", deduplicate: "prepare", decontaminate: "prepare", pack: "prepare", summarise: "prepare",
  forecast: "proxy", train: "train", evaluate: "eval", review: "eval", register: "register",
};
const STAGES = Object.keys(PHASE_OF);
export const Z95 = 1.96;

export const METRICS = {
  accuracy: { label: "Accuracy", format: percent, error: "accuracy_stderr", better: (a, b) => a > b },
  loss: { label: "Held-out loss (nats/token)", format: nats, error: null, better: (a, b) => a < b },
};

// Runs no other run beats on both cost and the metric.
export function paretoFront(runs, metric) {
  const { better } = METRICS[metric];
  const usable = runs.filter((r) => isNumber(r.cost_usd) && isNumber(r[metric]));
  const beats = (a, b) => a.cost_usd <= b.cost_usd && !better(b[metric], a[metric]) && (a.cost_usd < b.cost_usd || better(a[metric], b[metric]));
  return usable.filter((r) => !usable.some((other) => beats(other, r))).sort((a, b) => a.cost_usd - b.cost_usd);
}

// -- scales and axes

function ticksLinear(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? rough;
  const ticks = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return ticks;
}

function ticksLog(low, high, wanted) {
  const ticks = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p += 1) for (const m of [1, 2, 5]) ticks.push(m * 10 ** p);
  const inside = ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  return inside.length > wanted ? inside.filter((t) => String(t / 10 ** Math.floor(Math.log10(t) + 1e-9))[0] === "1") : inside;
}

function scale(low, high, from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  const span = f(high) - f(low) || 1;
  const map = (x) => from + ((f(x) - f(low)) / span) * (to - from);
  map.ticks = (wanted) => (log ? ticksLog(low, high, wanted) : ticksLinear(low, high, wanted));
  return map;
}

function padded(values, log) {
  const low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const factor = Math.max((high / low) ** 0.12, 1.35);
    return [low / factor, high * factor];
  }
  const pad = (high - low) * 0.12 || Math.abs(high) * 0.1 || 0.1;
  return [low - pad, high + pad];
}

const money = (x) => (x < 0.0001 ? `$${x.toExponential(0)}` : `$${Number(x.toPrecision(2)).toLocaleString("en", { maximumFractionDigits: 4 })}`);

// -- cost against accuracy (or loss)

export function scatter(runs, { width, metric, log, selected, onSelect }) {
  const { label, format, error } = METRICS[metric];
  const usable = runs.filter((r) => isNumber(r.cost_usd) && r.cost_usd > 0 && isNumber(r[metric]));
  if (!usable.length) return el("p", { class: "empty" }, "No run has both a cost and this measurement yet.");
  const height = width < 520 ? 300 : 360, left = 58, right = 18, top = 16, bottom = 46;
  const half = (r) => (error && isNumber(r[error]) ? Z95 * r[error] : 0);
  const x = scale(...padded(usable.map((r) => r.cost_usd), log), left, width - right, log);
  let [low, high] = padded(usable.flatMap((r) => [r[metric] - half(r), r[metric] + half(r)]), false);
  if (metric === "accuracy") { low = Math.max(0, low); high = Math.min(1, high); }
  const y = scale(low, high, height - bottom, top);
  const front = paretoFront(usable, metric);

  const axes = svg("g", { class: "axis" },
    y.ticks(7).map((t) => [
      svg("line", { x1: left, x2: width - right, y1: y(t), y2: y(t), class: "grid" }),
      svg("text", { x: left - 8, y: y(t), "text-anchor": "end", "dominant-baseline": "central" }, metric === "accuracy" ? percent(t, high - low < 0.1 ? 1 : 0) : t.toFixed(2)),
    ]),
    x.ticks(width < 520 ? 4 : 8).map((t) => [
      svg("line", { x1: x(t), x2: x(t), y1: height - bottom, y2: height - bottom + 5, class: "tick" }),
      svg("text", { x: x(t), y: height - bottom + 18, "text-anchor": "middle" }, money(t)),
    ]),
    svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "tick" }),
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "axis-label" }, `Cost of the whole run, USD${log ? " (log scale)" : ""}`),
  );
  const steps = front.flatMap((r, i) => (i ? [[x(r.cost_usd), y(front[i - 1][metric])], [x(r.cost_usd), y(r[metric])]] : [[x(r.cost_usd), y(r[metric])]]));
  if (steps.length) steps.push([width - right, steps.at(-1)[1]]);
  const marks = [...usable].sort((a, b) => front.includes(a) - front.includes(b)).map((r) => point(r, {
    cx: x(r.cost_usd), cy: y(r[metric]), top: y(r[metric] + half(r)), bottom: y(r[metric] - half(r)), hasError: half(r) > 0,
    best: front.includes(r), selected: r === selected, onSelect, metric, format,
  }));
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${label} against cost, one mark per run; the same numbers are in the table of runs` },
    axes, svg("polyline", { points: steps.map((p) => p.join(",")).join(" "), class: "front" }), marks);
}

function point(run, { cx, cy, top, bottom, hasError, best, selected, onSelect, metric, format }) {
  const champion = (run.aliases ?? []).includes("champion");
  const lines = [
    `${run.recipe}${run.model_version ? `, model version ${run.model_version}` : ""}${champion ? ", champion" : ""}`,
    `${METRICS[metric].label}: ${format(run[metric])}${hasError && metric === "accuracy" ? ` ± ${percent(Z95 * run.accuracy_stderr)} (95 %)` : ""}`,
    `Cost: ${usd(run.cost_usd)}, wasted ${usd(run.wasted_usd)}`,
    `Tokens: ${count(run.tokens)}, ${count(run.params_active)} of ${count(run.params_total)} parameters active`,
    best ? "On the Pareto front: no run is both cheaper and better" : "Another run is cheaper and at least as good",
    run.run_id,
  ];
  return svg("g", {
    class: `point${best ? " best" : ""}${selected ? " selected" : ""}`, role: "button", "aria-pressed": String(Boolean(selected)), ...tipped(lines), "data-run": run.run_id,
    onclick: () => onSelect(run), onkeydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); onSelect(run); } },
  },
    hasError && [
      svg("line", { x1: cx, x2: cx, y1: top, y2: bottom, class: "error" }),
      [top, bottom].map((at) => svg("line", { x1: cx - 5, x2: cx + 5, y1: at, y2: at, class: "error" })),
    ],
    svg("circle", { cx, cy, r: 16, class: "hit" }),
    champion ? svg("path", { d: star(cx, cy, 10), class: "mark" }) : svg("circle", { cx, cy, r: 6.5, class: "mark" }),
    selected && svg("circle", { cx, cy, r: 13, class: "ring" }),
  );
}

function star(cx, cy, r) {
  const at = (i) => { const a = (Math.PI * i) / 5 - Math.PI / 2, d = i % 2 ? r * 0.45 : r; return `${(cx + d * Math.cos(a)).toFixed(1)},${(cy + d * Math.sin(a)).toFixed(1)}`; };
  return `M${Array.from({ length: 10 }, (_, i) => at(i)).join("L")}Z`;
}

// -- forecast beside outcome: one row per metric, each on its own scale

const OUTCOMES = {
  loss: ["Held-out loss", nats], accuracy: ["Accuracy", percent], cost_usd: ["Cost of training", usd], wall_seconds: ["Training time", seconds],
};

export function forecastRows(run, width) {
  return (run.forecast ?? []).map((f) => {
    const [label, format] = OUTCOMES[f.metric] ?? [f.metric, String];
    const outcome = isNumber(f.outcome) ? f.outcome : null;
    const inside = outcome === null ? null : outcome >= f.low && outcome <= f.high;
    const verdict = inside === null ? "not measured yet" : inside ? "inside the interval" : `outside the interval (${outcome < f.low ? "below" : "above"})`;
    const lines = [label, `Forecast: ${format(f.predicted)} (95 %: ${format(f.low)} to ${format(f.high)})`, `Outcome: ${outcome === null ? MISSING : format(outcome)}, ${verdict}`];
    if (isNumber(f.naive)) lines.push(`Naive (as the best proxy): ${format(f.naive)}`);
    return el("div", { class: "forecast-row", "data-metric": f.metric },
      el("div", { class: "forecast-name" }, label, el("span", { class: `verdict ${inside === null ? "" : inside ? "good" : "bad"}` }, inside === null ? "" : inside ? "✓ " : "✗ ", verdict)),
      intervalStrip(f, outcome, width, lines),
      el("div", { class: "forecast-numbers" }, "forecast ", el("b", null, format(f.predicted)), ` (${format(f.low)} to ${format(f.high)}), outcome `, el("b", null, outcome === null ? MISSING : format(outcome))));
  });
}

function intervalStrip(f, outcome, width, lines) {
  const values = [f.low, f.high, f.predicted, outcome, f.naive].filter(isNumber);
  if (!values.length) return el("p", { class: "empty" }, MISSING);
  const x = scale(...padded(values, false), 6, width - 6), height = 30, mid = 15;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "strip", role: "img", ...tipped(lines) },
    svg("line", { x1: 0, x2: width, y1: mid, y2: mid, class: "grid" }),
    isNumber(f.low) && isNumber(f.high) && svg("rect", { x: x(f.low), y: mid - 8, width: Math.max(2, x(f.high) - x(f.low)), height: 16, rx: 3, class: "band" }),
    isNumber(f.naive) && svg("rect", { x: x(f.naive) - 4.5, y: mid - 4.5, width: 9, height: 9, class: "naive", transform: `rotate(45 ${x(f.naive)} ${mid})` }),
    isNumber(f.predicted) && svg("line", { x1: x(f.predicted), x2: x(f.predicted), y1: mid - 10, y2: mid + 10, class: "predicted" }),
    outcome !== null && svg("circle", { cx: x(outcome), cy: mid, r: 5.5, class: "outcome" }));
}

// -- cost by stage: one bar per run, phases in colour, wasted money hatched; in dollars or each run as a whole

export function costBars(runs, { width, share, selected, onSelect }) {
  const shown = runs.filter((r) => isNumber(r.cost_usd));
  if (!shown.length) return el("p", { class: "empty" }, "No charge is recorded yet.");
  const row = 34, left = Math.min(150, width * 0.3), right = 74, height = shown.length * row + 4;
  const most = Math.max(...shown.map((r) => r.cost_usd)) || 1;
  const room = width - left - right;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Cost by stage, one bar per run" },
    svg("defs", null, svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("line", { x1: 0, y1: 0, x2: 0, y2: 6, class: "hatch" }))),
    shown.map((run, i) => {
      let at = left;
      const top = i * row + 6, whole = share ? run.cost_usd || 1 : most;
      const parts = segments(run).map(([stage, cost, wasted]) => {
        const w = (cost / whole) * room, x0 = at;
        at += w;
        const lines = [`${stage}${wasted ? ", failed or killed attempts" : ""}`, `${usd(cost)}, ${percent(cost / run.cost_usd)} of the run`, run.run_id];
        return svg("g", { class: "segment", ...tipped(lines) },
          svg("rect", { x: x0, y: top, width: Math.max(w - 1, 0.8), height: 20, class: `phase-${PHASE_OF[stage] ?? "other"}` }),
          wasted && svg("rect", { x: x0, y: top, width: Math.max(w - 1, 0.8), height: 20, fill: "url(#hatch)" }));
      });
      return svg("g", { class: run === selected ? "bar selected" : "bar" },
        svg("text", { x: left - 10, y: top + 10, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name", onclick: () => onSelect(run) }, cut(runLabel(run), Math.floor(left / 7.5))),
        parts, svg("text", { x: at + 6, y: top + 10, "dominant-baseline": "central", class: "bar-total" }, usd(run.cost_usd)));
    }));
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
export const runLabel = (run) => cut(`${run.recipe}${run.model_version ? ` v${run.model_version}` : ""}`, 40);

// [stage, dollars, wasted?] in the order of the pipeline; a stage's wasted part follows its useful part.
export function segments(run) {
  const cost = run.cost_by_stage ?? {}, wasted = run.wasted_by_stage ?? {};
  const rank = (s) => (STAGES.indexOf(s) + 1 || 99);
  return Object.keys(cost).sort((a, b) => rank(a) - rank(b)).flatMap((stage) => {
    const lost = wasted[stage] ?? 0;
    return [[stage, cost[stage] - lost, false], [stage, lost, true]].filter(([, dollars]) => dollars > 1e-12);
  });
}

// -- scores by category, with what guessing and the best fixed answer reach

export function scoreBars(scores, width) {
  if (!scores.length) return el("p", { class: "empty" }, "This run has not been evaluated.");
  const row = 44, left = Math.min(150, width * 0.34), right = 58, height = scores.length * row + 22;
  const x = scale(0, 1, left, width - right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Accuracy by category with baselines" },
    svg("g", { class: "axis" }, [0, 0.25, 0.5, 0.75, 1].map((t) => [
      svg("line", { x1: x(t), x2: x(t), y1: 0, y2: height - 20, class: "grid" }),
      svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, percent(t, 0)),
    ])),
    scores.map((s, i) => {
      const mid = i * row + 20, half = isNumber(s.stderr) ? Z95 * s.stderr : 0;
      const clamp = (v) => x(Math.min(1, Math.max(0, v)));
      const base = Math.max(s.chance ?? 0, s.best_constant ?? 0);
      const lines = [
        s.name, `Accuracy ${percent(s.accuracy)} ± ${percent(half)} (95 %), ${count(s.n)} items`,
        `Guessing ${percent(s.chance)}, best fixed answer ${percent(s.best_constant)}`,
        s.accuracy - 2 * (s.stderr ?? 0) > base ? "Above both baselines by more than two standard errors" : "Not clearly above the baselines",
      ];
      return svg("g", { class: "score", "data-name": s.name, ...tipped(lines) },
        svg("rect", { x: 0, y: mid - 20, width, height: row - 4, class: "hit" }),
        svg("text", { x: left - 10, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(s.name, Math.floor(left / 7.5))),
        svg("rect", { x: left, y: mid - 8, width: Math.max(1, clamp(s.accuracy) - left), height: 16, rx: 2, class: "score-bar" }),
        half > 0 && svg("line", { x1: clamp(s.accuracy - half), x2: clamp(s.accuracy + half), y1: mid, y2: mid, class: "error" }),
        isNumber(s.chance) && svg("line", { x1: x(s.chance), x2: x(s.chance), y1: mid - 13, y2: mid + 13, class: "chance" }),
        isNumber(s.best_constant) && svg("line", { x1: x(s.best_constant), x2: x(s.best_constant), y1: mid - 13, y2: mid + 13, class: "constant" }),
        svg("text", { x: width - 4, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, percent(s.accuracy)));
    }));
}
