// Two runs side by side: what their recipes asked for differently, paired score differences, costs. Numbers are jobs/run_comparison.py's.

import { runLabel } from "./charts.js";
import { intervalRows, signed } from "./decision_charts.js";
import { el, factList, getJson, isNumber, MISSING, percent, usd } from "./dom.js";
import { csvFrom } from "./filters.js";

const MOST_OFFERED = 200;
const found = new Map(); // by both run keys, null while it is asked for

export const forget = () => found.clear();

// `state.against` is the run that the selected one is compared with. `ui` holds the page's own builders and `redraw`.
export function comparisonCard(runs, state, ui) {
  const { card, redraw } = ui, run = state.selected, others = runs.filter((r) => r !== run && r.run_keys?.train).slice(-MOST_OFFERED).reverse();
  const against = others.includes(state.against) ? state.against : null;
  const picker = el("label", { class: "picker" }, "Compare with ", el("select", {
    "data-keep": "compare-with", "aria-label": "Compare with", disabled: !others.length,
    onchange: (e) => redraw({ against: e.target.value === "" ? null : others[Number(e.target.value)] }),
  }, el("option", { value: "" }, others.length ? "choose a run" : "there is no other run"), others.map((r, i) => el("option", { value: i, selected: r === against }, `${runLabel(r)} · ${r.run_id.slice(0, 40)}`))));
  const about = against ? `A is ${runLabel(against)}, B is ${runLabel(run)}, the run shown. Differences are B minus A, on the items both answered.`
    : "What differs between two recipes, what the difference is worth on the items both answered, and what it costs.";
  if (!against) return card("Recipe comparison", about, picker);
  const key = `a=${encodeURIComponent(against.key)}&b=${encodeURIComponent(run.key)}`, answer = found.get(key), csv = csvFrom(`api/compare.csv?${key}`, "comparison");
  if (answer) return card("Recipe comparison", about, [picker, csv], ...(answer.message ? [el("p", { class: "empty", role: "alert" }, answer.message)] : compared(answer, ui)));
  if (!found.has(key)) {
    found.set(key, null);
    getJson(`api/compare?${key}`).catch((error) => ({ message: error.message })).then((value) => { found.set(key, value); redraw({}); });
  }
  return card("Recipe comparison", about, [picker, csv], el("p", { class: "empty", role: "status" }, "Comparing item by item…"));
}

function compared(answer, { plot, table }) {
  const shown = answer.effects.filter((e) => e.level !== "task"), average = shown[0];
  const more = answer.cost_difference_usd;
  const facts = [
    ["Score", average ? `${points(average.difference)} points (95 %: ${points(average.low)} to ${points(average.high)}), p ${probability(average.p_adjusted)}` : MISSING],
    ["Cost of the whole run", isNumber(more) ? `${signedUsd(more)} (${usd(answer.a.cost_usd)} to ${usd(answer.b.cost_usd)})` : MISSING],
    ["A point more costs", isNumber(answer.usd_per_point) ? usd(answer.usd_per_point) : average && isNumber(more) ? "nothing: B is not both better and dearer" : MISSING],
    ["Smallest difference this suite sees", average ? `${(100 * average.detectable).toFixed(1)} points` : MISSING],
  ];
  const days = [["A", answer.only_a], ["B", answer.only_b]].filter(([, only]) => only.length).map(([side, only]) => ({ cells: [`data days only of ${side}`, side === "A" ? only.join(", ") : "", side === "B" ? only.join(", ") : ""] }));
  const settings = [...(answer.settings ?? []).map((s) => ({ cells: [s.setting, plain(s.a), plain(s.b)] })), ...days];
  return [
    factList(facts),
    answer.problem ? el("p", { class: "empty" }, `The scores cannot be paired. ${answer.problem}`) : plot((width) => differenceRows(shown, width)),
    answer.settings === null && el("p", { class: "small" }, "One of the runs was recorded before settings were kept. Run it again (nothing is recomputed), and they are."),
    settings.length ? table(["What differs", "A", "B"], settings, "settings") : answer.settings && el("p", { class: "empty" }, "Both asked for the same settings and days."),
    table(["Cost of stage", "A", "B", "B minus A"], answer.costs.map((c) => ({ cells: [c.stage, usd(c.a), usd(c.b), signedUsd(c.difference)] })), "numbers"),
  ];
}

const signedUsd = (x) => (isNumber(x) ? `${x < 0 ? "−" : "+"}${usd(Math.abs(x))}` : MISSING);
const points = (share) => signed(100 * share);
const probability = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// A row per average and category; filled where the difference is significant after adjusting.
function differenceRows(effects, width) {
  const rows = effects.map((e) => {
    const sure = e.p_adjusted < 0.05;
    return {
      name: e.name, at: 100 * e.difference, low: 100 * e.low, high: 100 * e.high, mark: sure ? (e.difference > 0 ? "gained" : "lost") : "unsure", kind: "difference",
      data: { "data-effect": e.name, "data-difference": e.difference }, end: `${points(e.difference)}${sure ? " *" : ""}`,
      lines: [e.name, `A ${percent(e.accuracy_a)}, B ${percent(e.accuracy_b)}: ${points(e.difference)} points (95 %: ${points(e.low)} to ${points(e.high)})`,
        `p ${probability(e.p_adjusted)} after adjusting: ${sure ? "more than noise" : "may be noise"}`, `${e.n} items of ${e.n_tasks} ${e.n_tasks === 1 ? "task" : "tasks"}`],
    };
  });
  return intervalRows(rows, width, { about: "Difference in points by category, B minus A", left: Math.min(190, width * 0.36) });
}
