// The cards a decision is made with: what to train next, what a point cost, money over time, against the budget and lost, calibration, published models.
// Numbers are jobs/decision.py's; charts are in decision_charts.js.

import { OUTCOMES, runLabel } from "./charts.js";
import { budgetLine, coverageRows, gainRows, phaseClass, signed, SPEND_PHASES, spendColumns } from "./decision_charts.js";
import { copyable, count, el, isNumber, MISSING, percent, usd } from "./dom.js";
import { csvFrom, csvLink, isFiltered, matches } from "./filters.js";

const MOST_GAINS = 10, MOST_LOST = 8;
const total = (rows, of) => rows.reduce((sum, row) => sum + (of(row) ?? 0), 0);

// `ui` holds the page's own builders: card, plot, table, legend, toggle, switchTo.
export function decisionCards(data, runs, state, ui) {
  const filter = state.filter, spend = data.spend.filter((row) => matches(row, filter));
  return [nextCard(data, filter, ui), gainCard(runs, filter, ui), spendCard(spend, filter, ui), budgetCard(data, state, ui),
    wastedCard(data, spend, filter, ui), calibrationCard(data, filter, ui)];
}

function nextCard(data, filter, { card, table }) {
  const rows = data.next.filter((r) => matches(r, filter)), front = rows.filter((r) => r.on_front).length;
  const about = rows.length
    ? `${rows.length} ${rows.length === 1 ? "recipe is" : "recipes are"} forecast and not trained, ${front} of them on the predicted Pareto front. Gains are over the champion of now, if it answered the same suite.`
    : "No recipe is forecast and untrained.";
  const shown = rows.map((r) => ({ cells: [
    r.recipe, `${percent(r.accuracy_forecast)} (${percent(r.accuracy_low)} to ${percent(r.accuracy_high)})`, `${usd(r.cost_usd)} (${usd(r.cost_low)} to ${usd(r.cost_high)})`,
    `${signed(r.gain_points)} (${signed(r.gain_low)} to ${signed(r.gain_high)})`, isNumber(r.usd_per_point) ? usd(r.usd_per_point) : "nothing gained", r.on_front ? "on the front" : "dominated", r.decision,
  ] }));
  const best = rows.find((r) => r.command);
  return card("What to train next", about, csvLink("next", filter), ...(rows.length
    ? [table(["Recipe", "Accuracy forecast", "Cost of the whole run", "Points gained", "Per point", "Front", "Decision then"], shown, "numbers"), best && copyable(best.command)]
    : [el("p", { class: "small" }, "Forecast a recipe before its money is spent, or make one of what the champion fails at (Where it fails, below):"), copyable("moeline stage forecast --recipe small_cpu")]));
}

function gainCard(runs, filter, { card, plot }) {
  const compared = runs.filter((r) => isNumber(r.gain_points)), shown = compared.slice(-MOST_GAINS).reverse();
  const about = `Points of accuracy over the champion of then, of the same suite, with 95 % intervals; what the whole run cost for each.${compared.length > shown.length ? ` The newest ${shown.length} of ${compared.length}; all are in the CSV.` : ""}`;
  return card("Cost per point gained", about, csvLink("cost-vs-accuracy", filter), plot((width) => gainRows(shown, width, runLabel)));
}

function spendCard(rows, filter, { card, plot, legend }) {
  const phases = Object.keys(SPEND_PHASES).filter((phase) => rows.some((r) => r.phase === phase));
  const entries = phases.map((phase) => [phaseClass(phase), `${SPEND_PHASES[phase]} ${usd(total(rows.filter((r) => r.phase === phase), (r) => r.usd))}`]);
  return card("Cost by phase over time", `Every charge${isFiltered(filter) ? " of the filter" : ""}, ${usd(total(rows, (r) => r.usd))} in all, idle time and storage included; the narrow bar beside a column is what of it was wasted.`,
    csvLink("spend", filter), plot((width) => spendColumns(rows, width)), legend([...entries, ["lost", "wasted"]]));
}

function budgetCard(data, state, { card, plot, table, toggle, switchTo, legend }) {
  const names = [...new Set(data.budget.map((r) => r.recipe))], chosen = names.includes(state.budget) ? state.budget : names[0];
  const own = data.budget.filter((r) => r.recipe === chosen), last = own.at(-1);
  const limit = last && isNumber(last.limit_usd) ? `the budget is ${usd(last.limit_usd)} (${last.level})` : "no budget is set: [budgets] of the price sheet sets one";
  const about = last ? `${chosen ?? "All recipes"}, ${last.month}: ${usd(last.so_far_usd)} so far, ${usd(last.projected_usd)} at this pace by its end; ${limit}.` : "";
  const controls = [...(names.length > 1 ? names.map((name) => toggle(name ?? "All recipes", name === chosen, switchTo({ budget: name }))) : []), csvLink("budget", {})];
  const all = names.map((name) => data.budget.filter((r) => r.recipe === name).at(-1));
  return card("Spend against budget", about, controls, plot((width) => budgetLine(own, width)), legend([["so-far", "spent"], ["projected", "at this pace"], ["limit", "budget"]]),
    names.length > 1 && table(["Budget of", "Spent", "Projected", "Budget", "Level"], all.map((r) => ({ bad: r.level === "over", warn: r.level === "warning", cells: [r.recipe ?? "all recipes", usd(r.so_far_usd), usd(r.projected_usd), usd(r.limit_usd), r.level] })), "numbers"));
}

function wastedCard(data, spend, filter, { card, table }) {
  const rows = data.wasted.filter((r) => matches(r, filter)), lost = total(spend, (r) => r.wasted_usd), all = total(spend, (r) => r.usd);
  const byStage = new Map();
  for (const r of rows) byStage.set(r.stage, (byStage.get(r.stage) ?? 0) + r.usd);
  const stages = [...byStage].sort((a, b) => b[1] - a[1]).map(([stage, dollars]) => `${stage} ${usd(dollars)}`).join(", ");
  const about = all ? `${usd(lost)}, ${percent(lost / all)} of these charges, went to attempts that failed or were killed${stages ? `: ${stages}` : ""}.` : "No charge is recorded here.";
  return card("Wasted dollars", about, csvLink("wasted", filter), rows.length
    ? table(["Day", "Stage", "Recipe", "Outcome", "Cost", "Error"], rows.slice(0, MOST_LOST).map((r) => ({ cells: [r.started.slice(0, 10), r.stage, r.recipe, r.outcome, usd(r.usd), r.error ?? ""] })))
    : el("p", { class: "empty" }, "No attempt failed or was killed."),
    rows.length > MOST_LOST && el("p", { class: "small" }, `The dearest ${MOST_LOST} of ${rows.length}; all are in the CSV.`));
}

function calibrationCard(data, filter, { card, plot }) {
  const names = Object.fromEntries(Object.entries(OUTCOMES).map(([metric, [label]]) => [metric, label]));
  return card("Forecast calibration", "Over all past forecasts, whatever the filter: how often outcomes lay inside their 95 % intervals, with the interval of that share.",
    [csvLink("calibration", {}), csvFrom("api/figure.csv?name=forecasts", "forecasts", "Every forecast")],
    plot((width) => coverageRows(data.calibration, width, names)));
}

export function publishedCard(data, { card, table }) {
  const rows = data.published.map((m) => ({ cells: [
    m.name, `${count(m.params_active)} / ${count(m.params_total)}`, count(m.tokens), isNumber(m.flops) ? m.flops.toExponential(1) : MISSING,
    isNumber(m.cost_usd) ? `${dollars(m.cost_usd)} (${dollars(m.cost_low)} to ${dollars(m.cost_high)})` : MISSING, percent(m.gauntlet), percent(m.mmlu), m.source,
  ] }));
  const by = data.published.find((m) => isNumber(m.cost_usd));
  return card("Published models", `Published numbers, none measured here. Cost is 6 × active parameters × tokens, priced today by ${by ? by.priced_by : "no sheet"}; not what was paid.`,
    csvLink("published", {}), table(["Model (published)", "Active / total", "Tokens", "FLOPs", "Training compute", "Gauntlet v0.3", "MMLU, 5-shot", "Source"], rows));
}

const dollars = (x) => `$${count(x)}`;
