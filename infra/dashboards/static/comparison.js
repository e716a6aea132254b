// Two runs side by side: what their recipes asked for differently, paired score differences, costs. Numbers are jobs/run_comparison.py's.

import { cut, runLabel, scale } from "./charts.js";
import { signed } from "./decision_charts.js";
import { el, getJson, isNumber, MISSING, percent, svg, tipped, usd } from "./dom.js";

const MOST_OFFERED = 200;
const found = new Map(); // by both run keys; a build's numbers do not change while the page is open

export const forget = () => found.clear();

// `state.against` is the run that the selected one is compared with. `ui` holds the page's own builders and `redraw`.
export function comparisonCard(runs, state, ui) {
  const { card, redraw } = ui, run = state.selected, others = runs.filter((r) => r !== run && r.run_keys?.train).slice(-MOST_OFFERED).reverse();
  const against = others.includes(state.against) ? state.against : null;
  const picker = el("label", { class: "picker" }, "Compare with ", el("select", {
    "data-keep": "compare-with", "aria-label": "Compare with", disabled: !others.length,
    onchange: (e) => redraw({ against: e.target.value === "" ? null : others[Number(e.target.value)] }),
  }, el("option", { value: "" }, others.length ? "choose a run" : "there is no other run"), others.map((r, i) => el("option", { value: i, selected: r === against }, `${runLabel(r)} \u00b7 ${r.run_id.slice(0, 40)}`))));
  const about = against ? `A is ${runLabel(against)}, B is ${runLabel(run)}, the run shown. Differences are B minus A, on the items both answered.`
    : "What differs between two recipes, what the difference is worth on the items both answered, and what it costs.";
  if (!against) return card("Recipe comparison", about, picker);
  const key = `a=${encodeURIComponent(against.key)}&b=${encodeURIComponent(run.key)}`, answer = found.get(key);
  const csv = el("a", { class: "csv", href: `api/compare.csv?${key}`, download: "comparison.csv", "data-figure": "comparison", "aria-label": "comparison as CSV" }, "CSV");
  if (answer) return card("Recipe comparison", about, [picker, csv], ...(answer.message ? [el("p", { class: "empty", role: "alert" }, answer.message)] : compared(answer, ui)));
  getJson(`api/compare?${key}`).catch((error) => ({ message: error.message })).then((value) => { found.set(key, value); redraw({}); });
  return card("Recipe comparison", about, [picker, csv], el("p", { class: "empty", role: "status" }, "Comparing item by item\u2026"));
}

function compared(answer, { plot, table }) {
  const shown = answer.effects.filter((e) => e.level !== "task"), average = shown[0];
  const more = answer.cost_difference_usd;
  const facts = [
    ["Score", average ? `${points(average.difference)} points (95 %: ${points(average.low)} to ${points(average.high)}), p ${probability(average.p_adjusted)}` : MISSING],
    ["Cost of the whole run", isNumber(more) ? `${more < 0 ? "\u2212" : "+"}${usd(Math.abs(more))} (${usd(answer.a.cost_usd)} to ${usd(answer.b.cost_usd)})` : MISSING],
    ["A point more costs", isNumber(answer.usd_per_point) ? usd(answer.usd_per_point) : "nothing: B is not both better and dearer"],
    ["Smallest difference this suite sees", average ? `${(100 * average.detectable).toFixed(1)} points` : MISSING],
  ];
  const days = [["A", answer.only_a], ["B", answer.only_b]].filter(([, only]) => only.length).map(([side, only]) => ({ cells: [`data days only of ${side}`, side === "A" ? only.join(", ") : "", side === "B" ? only.join(", ") : ""] }));
  const settings = [...(answer.settings ?? []).map((s) => ({ cells: [s.setting, plain(s.a), plain(s.b)] })), ...days];
  return [
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value)))),
    answer.problem ? el("p", { class: "empty" }, `The scores cannot be paired. ${answer.problem}`) : plot((width) => differenceRows(shown, width)),
    answer.settings === null && el("p", { class: "small" }, "One of the runs was recorded before settings were kept. Run it again (nothing is recomputed), and they are."),
    settings.length ? table(["What differs", "A", "B"], settings, "settings") : answer.settings && el("p", { class: "empty" }, "Both asked for the same settings and days."),
    table(["Cost of stage", "A", "B", "B minus A"], answer.costs.map((c) => ({ cells: [c.stage, usd(c.a), usd(c.b), isNumber(c.difference) ? `${c.difference < 0 ? "\u2212" : "+"}${usd(Math.abs(c.difference))}` : MISSING] })), "numbers"),
  ];
}

const points = (share) => signed(100 * share);
const probability = (p) => (p < 0.001 ? "< 0.001" : p.toFixed(3));
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

// A row per average and category: the difference with its 95 % interval around no difference; filled where it is significant after adjusting.
function differenceRows(effects, width) {
  const row = 30, left = Math.min(190, width * 0.36), right = 92, height = effects.length * row + 24;
  const x = scale(100 * Math.min(0, ...effects.map((e) => e.low)), 100 * Math.max(0, ...effects.map((e) => e.high)), left, width - right);
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Difference in points by category, B minus A" },
    x.ticks(width < 520 ? 3 : 6).map((t) => [svg("line", { x1: x(t), x2: x(t), y1: 0, y2: height - 20, class: t === 0 ? "zero" : "grid" }), svg("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, t)]),
    effects.map((e, i) => {
      const mid = i * row + 16, sure = e.p_adjusted < 0.05;
      const lines = [e.name, `A ${percent(e.accuracy_a)}, B ${percent(e.accuracy_b)}: ${points(e.difference)} points (95 %: ${points(e.low)} to ${points(e.high)})`,
        `p ${probability(e.p_adjusted)} after adjusting: ${sure ? "more than noise" : "may be noise"}`, `${e.n} items of ${e.n_tasks} ${e.n_tasks === 1 ? "task" : "tasks"}`];
      return svg("g", { class: "gain difference", "data-effect": e.name, "data-difference": e.difference, role: "img", ...tipped(lines) }, svg("rect", { x: 0, y: mid - 14, width, height: row - 2, class: "hit" }),
        svg("text", { x: left - 10, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-name" }, cut(e.name, Math.floor(left / 7.5))),
        svg("line", { x1: x(100 * e.low), x2: x(100 * e.high), y1: mid, y2: mid, class: "error" }),
        svg("circle", { cx: x(100 * e.difference), cy: mid, r: 5, class: sure && e.difference > 0 ? "gained" : sure ? "lost" : "unsure" }),
        svg("text", { x: width - 2, y: mid, "text-anchor": "end", "dominant-baseline": "central", class: "bar-total" }, `${points(e.difference)}${sure ? " *" : ""}`));
    }));
}
