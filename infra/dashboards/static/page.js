// The page: reads the API once, keeps what is selected, and draws the cards. Charts are in charts.js, elements in dom.js.

import { costBars, forecastRows, METRICS, paretoFront, PHASES, runLabel, scatter, scoreBars, segments, Z95 } from "./charts.js";
import { count, el, factList, followTheme, getJson, hideTip, isNumber, keptFocus, MISSING, nats, openOutside, percent, seconds, usd } from "./dom.js";
import { comparisonCard, forget } from "./comparison.js";
import { decisionCards, publishedCard } from "./decision.js";
import { csvLink, filterBar, isFiltered, matches, NO_FILTER, rowsOf } from "./filters.js";
import { aboutProposals, proposals } from "./proposals.js";

const query = new URLSearchParams(location.search);
const state = { data: null, selected: null, metric: "accuracy", log: true, byTask: false, share: false, onlyFailed: false, note: null, otherChecks: null, proposed: new Map(), filter: NO_FILTER, budget: null, published: "", rows: 100, against: null };
const FIGURES = ["runs", "spend", "wasted", "budget", "calibration", "next", "published"];
const BENCHMARKS = { gauntlet: "Gauntlet v0.3", mmlu: "MMLU, 5-shot" };
const MOST_LISTED = 200;
const main = document.getElementById("main");

async function load() {
  main.setAttribute("aria-busy", "true");
  try {
    const answer = await getJson("api/runs");
    state.data = { ...answer, ...Object.fromEntries(FIGURES.map((name) => [name, rowsOf(answer[name])])) };
    state.proposed.clear();
    forget();
    await select();
    draw();
    await inFull(state.selected);
  } catch (error) {
    document.getElementById("lede").textContent = "The numbers could not be read.";
    main.replaceChildren(el("section", { class: "card notice", role: "alert" }, el("h2", null, "Nothing to show"), el("p", null, error.message)));
  }
  main.setAttribute("aria-busy", "false");
}

// Which run the page is about: the one of the DAG run tab, else what was selected before, else the newest.
async function select() {
  const { runs } = state.data;
  const asked = query.get("run"), before = state.selected?.run_id;
  state.note = null;
  state.otherChecks = null;
  state.selected = runs.find((r) => r.run_id === (before ?? asked)) ?? null;
  if (!state.selected && asked && !before) {
    state.selected = await sameWork(query.get("dag"), asked, runs);
    if (state.selected) state.note = `This run recomputed nothing: it found the model of run ${state.selected.run_id} recorded.`;
    else {
      const own = await getJson(`api/dag-run?run=${encodeURIComponent(asked)}`);
      const spent = segments(own).map(([stage, cost]) => `${stage} ${usd(cost)}`).join(", ");
      state.otherChecks = own.checks;
      state.note = `Run ${asked} has built no model (yet). It has cost ${isNumber(own.cost_usd) ? `${usd(own.cost_usd)} (${spent})` : "nothing"}; its own checks are below, the charts show all model builds.`;
    }
  }
  state.selected ??= runs.at(-1) ?? null;
}

// A build that reused everything has no charges of its own; the run key of its training says whose model it found.
async function sameWork(dag, run, runs) {
  if (dag !== "build_model") return null;
  const path = `/api/v2/dags/${encodeURIComponent(dag)}/dagRuns/${encodeURIComponent(run)}/taskInstances/train/xcomEntries/return_value?stringify=false`;
  const response = await fetch(path, { credentials: "same-origin" });
  if (!response.ok) return null;
  const key = (await response.json()).value?.run_key;
  return runs.find((r) => r.run_keys?.train === key) ?? null;
}

// The list of runs is short of what only one shown needs: checks, scores, gates, forecast rows. They are read when a run is chosen.
async function inFull(run) {
  if (!run || run.checks) return;
  try {
    Object.assign(run, await getJson(`api/run?key=${encodeURIComponent(run.key)}`));
  } catch (error) {
    run.problem = error.message;
  }
  if (state.selected === run) { const refocus = keptFocus(); draw(); refocus(false); }
}

function choose(run) {
  hideTip();
  const focused = document.activeElement?.dataset?.run;
  state.selected = run;
  state.note = null;
  state.otherChecks = null;
  draw();
  inFull(run);
  if (focused) main.querySelector(`[data-run="${CSS.escape(run.run_id)}"]`)?.focus();
}

// -- the whole page

function draw() {
  const focused = document.activeElement?.dataset?.run;
  const runs = shownRuns();
  drawHeader(runs);
  const run = state.selected;
  if (!state.data.runs.length) {
    main.replaceChildren(...note(), emptyState(), ...(state.otherChecks ? [checksCard(state.otherChecks, "of this DAG run")] : []));
    return;
  }
  const ui = { card, plot, table, legend, toggle, switchTo, redraw: (change) => switchTo(change)() };
  main.replaceChildren(
    ...note(), filterBar(state.data.runs, state.data.spend, state.filter, (filter) => switchTo({ filter, rows: 100 })()), tiles(runs), scatterCard(runs),
    ...decisionCards(state.data, runs, state, ui), forecastCard(run), scoresCard(run), costCard(runs), gatesCard(run), comparisonCard(state.data.runs, state, ui), proposalsCard(run), publishedCard(state.data, ui),
    checksCard(state.otherChecks ?? run.checks ?? [], state.otherChecks ? "of this DAG run" : `of ${runLabel(run)} and its corpus`), runsCard(runs),
  );
  fitCharts();
  if (focused && document.activeElement === document.body) main.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

const shownRuns = () => (isFiltered(state.filter) ? state.data.runs.filter((r) => matches(r, state.filter)) : state.data.runs);

function drawHeader(runs) {
  const { environment, currency } = state.data;
  document.getElementById("lede").textContent = runs.length
    ? `${runs.length === state.data.runs.length ? "" : `${runs.length} of `}${state.data.runs.length} ${state.data.runs.length === 1 ? "model build" : "model builds"} in environment “${environment}”. Costs are resources held × list prices (${currency}), every attempt included; not an invoice.`
    : state.data.runs.length ? "No model build is within the filter." : "No model has been built yet.";
  const picker = document.getElementById("run-picker");
  const listed = runs.slice(-MOST_LISTED);
  if (state.selected && !listed.includes(state.selected)) listed.unshift(state.selected);
  picker.closest("label").hidden = listed.length < 2;
  picker.replaceChildren(...listed.map((r, i) => el("option", { value: i, selected: r === state.selected }, `${runLabel(r)} · ${shortRun(r.run_id)}`)));
  picker.onchange = () => choose(listed[Number(picker.value)]);
}

const note = () => (state.note ? [el("p", { class: "card notice" }, state.note)] : []);

function emptyState() {
  return el("section", { class: "card notice" }, el("h2", null, "No runs yet"),
    el("p", null, "Build the first model with"), el("pre", null, "moeline run --recipe tiny --days 3"),
    el("p", null, "or unpause prepare_corpus and trigger build_model here in Airflow. Each build then shows up with its cost, scores, forecast and checks."));
}

function card(title, about, controls, ...content) {
  const id = `h-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return el("section", { class: "card", "aria-labelledby": id, id: id.slice(2) },
    el("div", { class: "card-head" }, el("div", null, el("h2", { id }, title), about && el("p", null, about)), controls && el("div", { class: "controls" }, controls)), content);
}

function toggle(label, pressed, onclick) {
  return el("button", { type: "button", class: "toggle", "aria-pressed": String(pressed), "data-keep": label, onclick }, label);
}

const switchTo = (change) => () => { const refocus = keptFocus(); Object.assign(state, change); draw(); refocus(); };

// Charts are drawn to the width they get; called once in the document and whenever that width changes.
const plots = new Map();
const plot = (make) => { const box = el("div", { class: "plot" }); plots.set(box, make); return box; };
function fitCharts() {
  for (const [box, make] of plots) {
    if (!box.isConnected) plots.delete(box);
    else if (box.clientWidth) box.replaceChildren(...[make(box.clientWidth)].flat());
  }
}

// -- cards

function tiles(runs) {
  const best = [...runs].filter((r) => isNumber(r.accuracy)).sort((a, b) => b.accuracy - a.accuracy)[0];
  const spent = sum(runs.map((r) => r.cost_usd)), wasted = sum(runs.map((r) => r.wasted_usd));
  const cheap = best && cheapestAsGood(runs, best);
  const failed = state.selected?.checks_failed ?? 0, passed = state.selected?.checks_passed ?? 0;
  const tile = (label, value, detail, kind) => el("div", { class: `tile ${kind ?? ""}` }, el("span", { class: "tile-label" }, label), el("b", null, value), el("span", { class: "tile-detail" }, detail));
  return el("section", { class: "tiles", "aria-label": "Summary" },
    tile("Best accuracy", best ? percent(best.accuracy) : MISSING, best ? `± ${percent(Z95 * (best.accuracy_stderr ?? 0))} (95 %), ${runLabel(best)}` : "no run has been evaluated"),
    tile("Cheapest as good as that", cheap ? usd(cheap.cost_usd) : MISSING, cheap ? `${runLabel(cheap)}: not distinguishable from the best by 2 standard errors` : ""),
    tile("Spent on these runs", usd(spent), `${usd(wasted)} wasted on failed or killed attempts`, wasted > 0 ? "warn" : ""),
    tile("Checks of this run", failed ? `${failed} failed` : `${passed} passed`, failed ? `${passed} passed` : "none failed", failed ? "bad" : "good"),
  );
}

const sum = (numbers) => (numbers.some(isNumber) ? numbers.filter(isNumber).reduce((a, b) => a + b, 0) : null);

function cheapestAsGood(runs, best) {
  const near = (r) => best.accuracy - r.accuracy <= 2 * Math.hypot(best.accuracy_stderr ?? 0, r.accuracy_stderr ?? 0);
  return runs.filter((r) => isNumber(r.cost_usd) && isNumber(r.accuracy) && near(r)).sort((a, b) => a.cost_usd - b.cost_usd)[0];
}

function scatterCard(runs) {
  const controls = [
    ...Object.keys(METRICS).map((m) => toggle(m === "loss" ? "Loss" : "Accuracy", state.metric === m, switchTo({ metric: m }))),
    el("span", { class: "gap" }), toggle("Log cost", state.log, switchTo({ log: !state.log })), el("span", { class: "gap" }),
    ...Object.entries(BENCHMARKS).map(([name, label]) => toggle(`Published: ${label}`, state.published === name, switchTo({ published: state.published === name ? "" : name, metric: "accuracy" }))),
    csvLink("cost-vs-accuracy", state.filter),
  ];
  const front = paretoFront(runs, state.metric).length, suites = new Set(runs.map((r) => r.suite).filter(Boolean)).size;
  const about = [
    `Each mark is one run; bars are 95 % intervals of accuracy, ★ is the champion. The line joins the ${front} on the Pareto front, dominated runs are dimmed. ◇ is a forecast: of the selected run, or of a recipe that is not trained.`,
    suites > 1 && state.metric === "accuracy" && ` ${suites} suites are shown, each with its own front: their scores cannot be compared.`,
    state.published && ` ■ are published scores of ${BENCHMARKS[state.published]}, another suite than any here, at the price of their training compute.`,
  ];
  const published = state.data.published.filter((m) => isNumber(m.cost_usd) && isNumber(m[state.published])).map((m) => (
    { name: m.name, benchmark: BENCHMARKS[state.published], score: m[state.published], cost: m.cost_usd, low: m.cost_low, high: m.cost_high }));
  const waiting = state.data.next.filter((w) => matches(w, state.filter));
  return card("Runs", about.filter(Boolean).join(""), controls,
    plot((width) => scatter(runs, { width, metric: state.metric, log: state.log, selected: state.selected, onSelect: choose, waiting, published })));
}

function forecastCard(run) {
  const body = run.forecast?.length
    ? [plot((width) => forecastRows(run, width)), legend([["band", "95 % interval"], ["predicted", "forecast"], ["naive", "as the best proxy"], ["outcome", "outcome"]])]
    : [el("p", { class: "empty" }, run.problem ?? (run.checks ? "This run has no recorded forecast." : "Reading…"))];
  return card("Forecast against outcome", `${runLabel(run)}: written down and hashed before the money was spent.`, null, ...body);
}

// Read when the run is first shown. The card itself is kept, so that a redraw closes nothing in it.
function proposalsCard(run) {
  const key = run.run_keys?.train;
  const make = (found) => card("Where it fails", aboutProposals(found), null, ...proposals(found));
  if (!key || !run.run_keys.review) return make({ problem: "This run has not been reviewed." });
  const show = (found) => { const shown = make(found); state.proposed.get(key)?.replaceWith(shown); state.proposed.set(key, shown); };
  if (!state.proposed.has(key)) {
    show(null);
    getJson(`api/proposals?run_key=${encodeURIComponent(key)}`).catch((error) => ({ problem: error.message })).then(show);
  }
  return state.proposed.get(key);
}

function legend(entries) {
  return el("ul", { class: "legend" }, entries.map(([kind, text]) => el("li", null, el("span", { class: `key key-${kind}`, "aria-hidden": "true" }), text)));
}

function scoresCard(run) {
  const tasks = [...(run.scores ?? [])].map((s) => ({ ...s, name: s.benchmark }));
  const categories = [...(run.scores_by_category ?? [])].map((s) => ({ ...s, name: s.category }));
  const shown = state.byTask ? tasks : categories;
  const controls = [toggle("By category", !state.byTask, switchTo({ byTask: false })), toggle("By task", state.byTask, switchTo({ byTask: true }))];
  return card("Scores", `${runLabel(run)}: accuracy with 95 % intervals, beside what guessing and the best fixed answer reach.`, controls,
    plot((width) => scoreBars(shown, width)), legend([["score", "accuracy"], ["chance", "guessing"], ["constant", "best fixed answer"]]));
}

function costCard(runs) {
  const wasted = runs.some((r) => r.wasted_usd > 0);
  const controls = [toggle("Dollars", !state.share, switchTo({ share: false })), toggle("Share", state.share, switchTo({ share: true }))];
  return card("Cost by stage", "Newest first. Hatched parts paid for attempts that failed or were killed.", controls,
    plot((width) => costBars([...runs].reverse().slice(0, 12), { width, share: state.share, selected: state.selected, onSelect: choose })),
    legend([...Object.entries(PHASES).map(([phase, label]) => [`phase-${phase}`, label]), ...(wasted ? [["wasted", "wasted"]] : [])]));
}

function gatesCard(run) {
  const gates = run.gates ?? [];
  const about = run.registered
    ? `Registered as ${run.model_name} version ${run.model_version}${run.aliases?.length ? ` (${run.aliases.join(", ")})` : ", without an alias"}.` : "Not registered.";
  const mlflow = state.data.mlflow_url && run.registered && toggle("Open in MLflow", false, () =>
    openOutside(`${state.data.mlflow_url}/#/models/${encodeURIComponent(run.model_name)}/versions/${encodeURIComponent(run.model_version)}`, true));
  const named = run.registered && new URLSearchParams({ name: run.model_name, version: run.model_version });
  const modelCard = named && toggle("Model card", false, () => openOutside(new URL(`api/card?${named}`, location.href).href, true));
  const training = state.data.mlflow_url && run.mlflow_run_id && toggle("Training in MLflow", false, () => openOutside(`${state.data.mlflow_url}/#/runs/${encodeURIComponent(run.mlflow_run_id)}`, true));
  return card("This run", about, [training, mlflow, modelCard].filter(Boolean), facts(run), gates.length
    ? table(["Gate", "Observed", "Limit", "Result"], gates.map((g) => ({ bad: !g.passed, cells: [g.gate ?? g.name, shortValue(g.observed), shortValue(g.limit), g.passed ? "passed" : "not passed"] })))
    : el("p", { class: "empty" }, "No promotion gate has been evaluated."));
}

function facts(run) {
  const days = run.days ?? [];
  const entries = [
    ["Run", shortRun(run.run_id), run.run_id], ["Corpus", days.length ? `${days.length} ${days.length === 1 ? "day" : "days"}, ${days[0]}${days.length > 1 ? ` to ${days.at(-1)}` : ""}` : MISSING],
    ["Trained on", `${count(run.tokens)} tokens`], ["Parameters", `${count(run.params_total)}, ${count(run.params_active)} active`],
    ["Held-out loss", `${nats(run.loss)} nats/token${isNumber(run.unigram_loss) ? `, a unigram model has ${nats(run.unigram_loss)}` : ""}`],
    ["Energy", isNumber(run.energy_kwh) ? `${run.energy_kwh.toPrecision(2)} kWh, estimated` : MISSING],
  ];
  return factList(entries);
}

// manual__2026-11-16T18:53:14.861211+00:00 is unreadable in a table; the whole id is in the title.
function shortRun(id) {
  const found = /^([a-z_]+?)__(\d{4}-\d\d-\d\d)T(\d\d:\d\d)/.exec(id);
  return found ? `${found[2]} ${found[3]} ${found[1]}` : id;
}

const shortValue = (v) => (isNumber(v) ? String(Number(v.toPrecision(4))) : v === null || v === undefined ? MISSING : typeof v === "object" ? JSON.stringify(v) : String(v));

function checksCard(checks, about) {
  const sorted = [...checks].sort((a, b) => a.passed - b.passed || (a.severity === "warning") - (b.severity === "warning"));
  const failed = sorted.filter((c) => !c.passed);
  const shown = (state.onlyFailed ? failed : sorted).slice(0, 300);
  const rows = shown.map((c) => ({
    bad: !c.passed && c.severity !== "warning", warn: !c.passed && c.severity === "warning",
    cells: [c.passed ? "passed" : c.severity === "warning" ? "warning" : "FAILED", c.stage, c.interval ?? "", c.table_name, c.rule, shortValue(c.observed), c.passed ? "" : count(c.failed_rows), c.where_rejected ?? ""],
  }));
  const controls = [toggle(`Failed only (${failed.length})`, state.onlyFailed, switchTo({ onlyFailed: !state.onlyFailed }))];
  return card("Data-quality checks", `${checks.length} checks ${about}, failing ones first.`, controls, rows.length
    ? table(["Result", "Stage", "Day", "Table", "Rule", "Observed", "Rows", "Where the rows are"], rows, "checks")
    : el("p", { class: "empty" }, checks.length ? "None failed." : "No check is recorded."),
    shown.length < (state.onlyFailed ? failed : sorted).length && el("p", { class: "empty" }, "Only the first 300 are shown; all are in the table checks."));
}

function runsCard(runs) {
  const head = ["Run", "Recipe", "Model", "Tokens", "Active / total", "Cost", "Wasted", "Time", "Loss (forecast)", "Accuracy", "Checks", "Status"];
  const rows = runs.slice(-state.rows).reverse().map((r) => ({
    selected: r === state.selected,
    cells: [
      el("span", { class: "links" }, el("button", { type: "button", class: "link", title: r.run_id, onclick: () => choose(r) }, shortRun(r.run_id)), r.run_id.startsWith("by-hand") ? null
        : el("button", { type: "button", class: "link quiet", "aria-label": `Open run ${r.run_id} in Airflow`, onclick: () => openOutside(`/dags/build_model/runs/${encodeURIComponent(r.run_id)}`) }, "open ↗")),
      r.recipe, r.model_version ? `v${r.model_version}` : MISSING, count(r.tokens), `${count(r.params_active)} / ${count(r.params_total)}`, usd(r.cost_usd), usd(r.wasted_usd),
      seconds(r.wall_seconds), `${nats(r.loss)} (${nats(r.loss_forecast)})`, `${percent(r.accuracy)}${isNumber(r.accuracy_stderr) ? ` ± ${percent(Z95 * r.accuracy_stderr)}` : ""}`,
      `${r.checks_passed ?? MISSING} ok, ${r.checks_failed ?? MISSING} failed`, [r.status, ...(r.aliases ?? [])].join(", "),
    ],
  }));
  const more = runs.length > state.rows && el("button", { type: "button", "data-keep": "more-runs", onclick: switchTo({ rows: state.rows + 400 }) }, `Show 400 more of ${runs.length}`);
  return card("All runs as a table", "The numbers behind the charts, newest first.", csvLink("cost-vs-accuracy", state.filter), table(head, rows, "numbers"), more);
}

function table(head, rows, kind) {
  return el("div", { class: `table-box ${kind ?? ""}`, tabindex: 0, role: "region", "aria-label": "Table, scrolls sideways" },
    el("table", null, el("thead", null, el("tr", null, head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", null, rows.map((row) => el("tr", { class: [row.bad && "bad", row.warn && "warn", row.selected && "selected"].filter(Boolean).join(" ") || null },
        row.cells.map((cell, i) => el("td", { "data-label": head[i] }, cell)))))));
}

followTheme();
// Scrolling hides the tooltip, but not when it was the keyboard that moved to a mark off the screen.
window.addEventListener("scroll", () => {
  hideTip();
  const focused = document.activeElement;
  if (focused?.ownerSVGElement && focused.matches(":focus-visible")) focused.dispatchEvent(new FocusEvent("focus"));
}, { passive: true });
document.getElementById("reload").addEventListener("click", load);
let width = 0;
new ResizeObserver(() => { if (main.clientWidth !== width) { width = main.clientWidth; hideTip(); fitCharts(); } }).observe(main);
load();
