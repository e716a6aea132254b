// Charts as plain SVG: each function takes data and a width and returns an element. No state, no fetching.

import { count, el, hideTip, isNumber, MISSING, nats, percent, seconds, showTip, svg, tipped, usd } from "./dom.js";

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

// Runs no other run of the same suite beats on both cost and the metric, cheapest first; losses are compared over all suites. One pass over the
// runs in order of cost, as there may be thousands.
export function paretoFront(runs, metric) {
  const { better } = METRICS[metric];
  const usable = runs.filter((r) => isNumber(r.cost_usd) && isNumber(r[metric])).sort((a, b) => a.cost_usd - b.cost_usd || (better(a[metric], b[metric]) ? -1 : 1));
  const last = new Map(), front = [];
  for (const run of usable) {
    const suite = metric === "accuracy" ? run.suite : null, best = last.get(suite);
    if (best && !better(run[metric], best[metric]) && !(run[metric] === best[metric] && run.cost_usd === best.cost_usd)) continue;
    last.set(suite, run);
    front.push(run);
  }
  return front;
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

export function scale(low, high, from, to, log = false) {
  const f = log ? Math.log10 : (x) => x;
  const span = f(high) - f(low) || 1;
  const map = (x) => from + ((f(x) - f(low)) / span) * (to - from);
  map.ticks = (wanted) => (log ? ticksLog(low, high, wanted) : ticksLinear(low, high, wanted));
  return map;
}

function padded(values, log) {
  let low = Infinity, high = -Infinity;  // not Math.min(...values): a call takes only so many arguments
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (log) {
    const factor = Math.max((high / low) ** 0.12, 1.35);
    return [low / factor, high * factor];
  }
  const pad = (high - low) * 0.12 || Math.abs(high) * 0.1 || 0.1;
  return [low - pad, high + pad];
}

export const axisMoney = (x) => (x === 0 ? "$0" : x >= 1e5 ? `$${count(x)}` : x < 0.0001 ? `$${x.toExponential(0)}` : `$${Number(x.toPrecision(2)).toLocaleString("en", { maximumFractionDigits: 4 })}`);

// -- cost against accuracy (or loss)

const MOST_MARKS = 400;

// `waiting`: forecasts of recipes that are not trained; `published`: models of others, [name, cost, score, cost_low, cost_high].
export function scatter(runs, { width, metric, log, selected, onSelect, waiting = [], published = [] }) {
  const { label, error } = METRICS[metric];
  const usable = runs.filter((r) => isNumber(r.cost_usd) && r.cost_usd > 0 && isNumber(r[metric]));
  const coming = metric === "accuracy" ? waiting.filter((w) => isNumber(w.cost_usd) && w.cost_usd > 0) : [];
  if (!usable.length && !coming.length) return el("p", { class: "empty" }, "No run has both a cost and this measurement yet.");
  const height = width < 520 ? 300 : 360, left = 58, right = 18, top = 16, bottom = 46, others = metric === "accuracy" ? published : [];
  const half = (r) => (error && isNumber(r[error]) ? Z95 * r[error] : 0);
  const hoped = selected && usable.includes(selected) && isNumber(selected.cost_forecast_usd) && selected.cost_forecast_usd > 0 && isNumber(selected[`${metric}_forecast`]) ? selected : null;
  const costs = [...usable.map((r) => r.cost_usd), ...coming.map((w) => w.cost_usd), ...others.flatMap((o) => [o.low, o.high]), ...(hoped ? [hoped.cost_forecast_usd] : [])];
  const x = scale(...padded(costs, log), left, width - right, log);
  const ends = [...usable.flatMap((r) => [r[metric] - half(r), r[metric] + half(r)]), ...coming.flatMap((w) => [w.accuracy_low, w.accuracy_high]), ...others.map((o) => o.score), ...(hoped ? [hoped[`${metric}_forecast`]] : [])];
  let [low, high] = padded(ends, false);
  if (metric === "accuracy") { low = Math.max(0, low); high = Math.min(1, high); }
  const y = scale(low, high, height - bottom, top);
  const front = paretoFront(usable, metric), best = new Set(front);
  const many = usable.length > MOST_MARKS, single = many ? usable.filter((r) => best.has(r) || r === selected || (r.aliases ?? []).includes("champion")) : usable;
  const at = (r) => [x(r.cost_usd), y(r[metric])];
  const marks = [...single].sort((a, b) => best.has(a) - best.has(b)).map((r) => point(r, {
    cx: x(r.cost_usd), cy: y(r[metric]), top: y(r[metric] + half(r)), bottom: y(r[metric] - half(r)), hasError: half(r) > 0, best: best.has(r), selected: r === selected, onSelect, metric,
  }));
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${label} against cost, ${many ? `${usable.length} runs: a mark for each on the front, dots for the others` : "one mark per run"}; the same numbers are in the table of runs` },
    axes({ x, y, width, height, left, right, bottom, metric, log, fine: high - low < 0.1 }), [...Map.groupBy(front, (r) => (metric === "accuracy" ? r.suite : null)).values()].map((alike) => frontLine(alike.map(at), width - right)),
    many && cloud(usable, at, onSelect), hoped && forecastOf(hoped, metric, x, y), marks, coming.map((w) => waitingMark(w, x, y)), others.map((o) => publishedMark(o, x, y, width)));
}

function axes({ x, y, width, height, left, right, bottom, metric, log, fine }) {
  return svg("g", { class: "axis" },
    y.ticks(7).map((t) => [
      svg("line", { x1: left, x2: width - right, y1: y(t), y2: y(t), class: "grid" }),
      svg("text", { x: left - 8, y: y(t), "text-anchor": "end", "dominant-baseline": "central" }, metric === "accuracy" ? percent(t, fine ? 1 : 0) : t.toFixed(2)),
    ]),
    x.ticks(width < 520 ? 4 : 8).map((t) => [
      svg("line", { x1: x(t), x2: x(t), y1: height - bottom, y2: height - bottom + 5, class: "tick" }),
      svg("text", { x: x(t), y: height - bottom + 18, "text-anchor": "middle" }, axisMoney(t)),
    ]),
    svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "tick" }),
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "axis-label" }, `Cost of the whole run, USD${log ? " (log scale)" : ""}`));
}

function frontLine(places, end) {
  const steps = places.flatMap((p, i) => (i ? [[p[0], places[i - 1][1]], p] : [p]));
  return svg("polyline", { points: [...steps, [end, steps.at(-1)[1]]].map((p) => p.join(",")).join(" "), class: "front" });
}

// Thousands of runs are one element; the one nearest to the pointer is shown and can be chosen. By keyboard they are chosen in the table and the list of runs.
function cloud(runs, at, onSelect) {
  const places = runs.map(at);
  const nearest = (event) => {
    const box = event.currentTarget.ownerSVGElement.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    let found = -1, distance = 144;
    places.forEach(([x, y], i) => { const d = (x - px) ** 2 + (y - py) ** 2; if (d < distance) { found = i; distance = d; } });
    return found;
  };
  const show = (event) => {
    const i = nearest(event), box = event.currentTarget.ownerSVGElement.getBoundingClientRect();
    if (i < 0) return;
    const [x, y] = places[i];
    showTip([runLabel(runs[i]), `Cost: ${usd(runs[i].cost_usd)}, accuracy ${percent(runs[i].accuracy)}, loss ${nats(runs[i].loss)}`, runs[i].run_id],
      { getBoundingClientRect: () => new DOMRect(box.left + x - 5, box.top + y - 5, 10, 10) });
  };
  return svg("path", { class: "cloud", "aria-hidden": "true", d: places.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join(""), onmousemove: show, onmouseleave: hideTip, onclick: (e) => { const i = nearest(e); if (i >= 0) onSelect(runs[i]); } });
}

const diamond = (x, y, r) => `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`;

// What the selected run was forecast to reach and cost, joined to what it did.
function forecastOf(run, metric, x, y) {
  const { format } = METRICS[metric], fx = x(run.cost_forecast_usd), fy = y(run[`${metric}_forecast`]);
  const lines = [`Forecast of ${runLabel(run)}`, `${METRICS[metric].label}: ${format(run[`${metric}_forecast`])}, became ${format(run[metric])}`, `Cost: ${usd(run.cost_forecast_usd)}, became ${usd(run.cost_usd)}`];
  return svg("g", { class: "forecast-point", role: "img", ...tipped(lines) }, svg("line", { x1: fx, y1: fy, x2: x(run.cost_usd), y2: y(run[metric]) }), svg("path", { d: diamond(fx, fy, 6.5) }));
}

function waitingMark(w, x, y) {
  const lines = [`${w.recipe}: forecast, not trained`, `Accuracy: ${percent(w.accuracy_forecast)} (95 %: ${percent(w.accuracy_low)} to ${percent(w.accuracy_high)})`, `Cost of the whole run: ${usd(w.cost_usd)}`, w.on_front ? "On the predicted Pareto front" : "Dominated"];
  const cx = x(w.cost_usd);
  return svg("g", { class: "forecast-point waiting", role: "img", "data-recipe": w.recipe, ...tipped(lines) },
    svg("line", { x1: cx, x2: cx, y1: y(w.accuracy_low), y2: y(w.accuracy_high), class: "interval" }), svg("path", { d: diamond(cx, y(w.accuracy_forecast), 6.5) }));
}

function publishedMark(o, x, y, width) {
  const lines = [`${o.name}: published, not measured here`, `${o.benchmark}: ${percent(o.score)}`, `Training compute at these prices: $${count(o.cost)} ($${count(o.low)} to $${count(o.high)})`];
  const cx = x(o.cost), cy = y(o.score), end = cx > width * 0.7;
  return svg("g", { class: "published", role: "img", "data-name": o.name, ...tipped(lines) },
    svg("line", { x1: x(o.low), x2: x(o.high), y1: cy, y2: cy }), svg("rect", { x: cx - 5, y: cy - 5, width: 10, height: 10 }),
    width >= 520 && svg("text", { x: cx + (end ? -9 : 9), y: cy - 8, "text-anchor": end ? "end" : "start" }, o.name));
}

function point(run, { cx, cy, top, bottom, hasError, best, selected, onSelect, metric }) {
  const { format } = METRICS[metric];
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

export const OUTCOMES = {
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

export const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
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
