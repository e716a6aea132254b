// Scores over checkpoints: categories, then benchmarks, then items. Elements and escaping are in dom.js.

import { count, el, followTheme, getJson, hideTip, isNumber, keptFocus, MISSING, percent, svg, tipped } from "./dom.js";

const Z95 = 1.96, PAGE = 25;
const state = { points: [], verdicts: [], recipe: "", category: "", benchmark: "", verdict: "", run: "", axis: "finished_at", offset: 0 };
const main = document.getElementById("main");
let width = 0, asked = 0;

async function load() {
  main.setAttribute("aria-busy", "true");
  try {
    Object.assign(state, await getJson("api/trend"));
    state.run ||= state.points.at(-1)?.run_key ?? "";
    await draw();
  } catch (error) {
    main.replaceChildren(el("section", { class: "card notice wide", role: "alert" }, el("h2", null, "Nothing to show"), el("p", null, error.message)));
  }
  main.setAttribute("aria-busy", "false");
}

const set = (change) => () => { Object.assign(state, change); hideTip(); draw(); };
const unique = (values) => [...new Set(values)];
const recipes = () => unique(state.points.map((p) => p.recipe));

function pick(label, value, options, change) {
  return el("label", { class: "picker" }, `${label} `, el("select", { "aria-label": label, "data-keep": label, onchange: (e) => change(e.target.value) },
    options.map(([v, text]) => el("option", { value: v, selected: v === value }, text))));
}

async function draw() {
  const refocus = keptFocus();
  const shown = state.points.filter((p) => !state.recipe || p.recipe === state.recipe);
  const models = unique(shown.map((p) => p.run_key));
  if (!models.includes(state.run)) state.run = models.at(-1) ?? "";
  document.getElementById("lede").textContent = models.length
    ? `${models.length} evaluated ${models.length === 1 ? "checkpoint" : "checkpoints"}. Bars are 95 % intervals; the two baselines are guessing and the best fixed answer.`
    : "No checkpoint has been evaluated yet. Run: moeline run --recipe tiny";
  const tasks = unique(shown.filter((p) => !p.benchmark.startsWith("*")).map((p) => p.benchmark));
  const all = [["", "All"]];
  document.getElementById("filters").replaceChildren(
    pick("Recipe", state.recipe, [...all, ...recipes().map((r) => [r, r])], (recipe) => set({ recipe, offset: 0 })()),
    pick("Benchmark", state.benchmark, [...all, ...tasks.map((t) => [t, t])], (benchmark) => set({ benchmark, category: shown.find((p) => p.benchmark === benchmark)?.category ?? "", offset: 0 })()),
    pick("Verdict", state.verdict, [...all, ...state.verdicts.map((v) => [v, v.replaceAll("_", " ")])], (verdict) => set({ verdict, offset: 0 })()),
    pick("Against", state.axis, [["finished_at", "time"], ["tokens", "trained tokens"]], (axis) => set({ axis })()),
    el("a", { class: "csv", href: "api/trend.csv", download: "scores.csv" }, "Scores as CSV"));
  const lines = shown.filter((p) => (state.category ? p.category === state.category && !p.benchmark.startsWith("*") : p.benchmark.startsWith("*")));
  const groups = unique(lines.map((p) => (state.category ? p.benchmark : p.category)));
  const cards = groups.filter((g) => !state.benchmark || g === state.benchmark).map((g) => {
    const own = lines.filter((p) => (state.category ? p.benchmark : p.category) === g);
    const open = state.category ? { benchmark: g, offset: 0 } : own[0].benchmark === "**" ? null : { category: g, benchmark: "" };
    return el("section", { class: "card", "data-name": g }, el("div", { class: "card-head" }, el("h2", null, g),
      open && el("button", { type: "button", "data-keep": `open ${g}`, onclick: set(open) }, state.category ? "Items" : "Benchmarks")), el("div", { class: "plot" }, chart(own, g)));
  });
  const crumbs = state.category && el("section", { class: "card wide crumbs" }, el("button", { type: "button", "data-keep": "categories", onclick: set({ category: "", benchmark: "" }) }, "All categories"),
    `› ${state.category}`, state.benchmark && [el("button", { type: "button", "data-keep": "benchmarks", onclick: set({ benchmark: "" }) }, "All benchmarks"), `› ${state.benchmark}`]);
  const box = el("section", { class: "card wide", id: "items" });
  main.replaceChildren(...[crumbs, legend(), ...cards, state.benchmark && state.run && box].filter(Boolean));
  refocus(false); // the buttons below the items are drawn when those are read
  if (state.benchmark && state.run) await drawItems(box, ++asked);
  refocus();
}

function legend() {
  return el("ul", { class: "legend wide" }, recipes().slice(0, 12).map((r, i) => el("li", { class: `series-${i % 4}` }, svg("svg", { width: 34, height: 12 }, svg("line", { x1: 0, x2: 34, y1: 6, y2: 6, class: "trend-line" }), mark(17, 6, i)), r)),
    [["chance", "guessing (solid)"], ["constant", "best fixed answer (dashed)"]].map(([kind, text]) => el("li", null, svg("svg", { width: 26, height: 12 }, svg("line", { x1: 0, x2: 26, y1: 6, y2: 6, class: kind })), text)));
}

function mark(x, y, i) {
  const r = 5;
  if (i % 4 === 1) return svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, class: "trend-mark" });
  if (i % 4 === 2) return svg("path", { d: `M${x},${y - 6}L${x + 6},${y + 5}L${x - 6},${y + 5}Z`, class: "trend-mark" });
  if (i % 4 === 3) return svg("path", { d: `M${x},${y - 7}L${x + 7},${y}L${x},${y + 7}L${x - 7},${y}Z`, class: "trend-mark" });
  return svg("circle", { cx: x, cy: y, r, class: "trend-mark" });
}

function chart(points, name) {
  const w = Math.max(260, Math.min(620, (width < 860 ? width : width / 2 - 8) - 58)), h = 230, left = 48, right = w - 16, top = 12, bottom = h - 34;
  const at = (p) => (state.axis === "tokens" ? p.tokens : Date.parse(p.finished_at));
  const usable = points.filter((p) => isNumber(at(p)) && isNumber(p.accuracy));
  if (!usable.length) return el("p", { class: "empty" }, "No point has this measurement.");
  const xs = usable.map(at), lo = Math.min(...xs), hi = Math.max(...xs);
  const x = (p) => (hi === lo ? (left + right) / 2 : left + 14 + ((at(p) - lo) / (hi - lo)) * (right - left - 28));
  const most = Math.min(1, Math.max(...usable.map((p) => Math.max(p.accuracy + Z95 * (p.stderr ?? 0), p.chance ?? 0, p.best_constant ?? 0))) * 1.1 || 1);
  const y = (v) => bottom - (Math.min(most, Math.max(0, v)) / most) * (bottom - top);
  const text = (v) => (state.axis === "tokens" ? count(v) : new Date(v).toISOString().slice(0, 10));
  const base = (key, kind) => { const sorted = usable.filter((p) => isNumber(p[key])).sort((a, b) => at(a) - at(b)); return sorted.length > 0 && svg("polyline", { class: kind, fill: "none", points: [[left, y(sorted[0][key])], ...sorted.map((p) => [x(p), y(p[key])]), [right, y(sorted.at(-1)[key])]].join(" ") }); };
  return svg("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `${name}: accuracy over checkpoints` },
    [0, 0.25, 0.5, 0.75, 1].map((t) => [svg("line", { x1: left, x2: right, y1: y(t * most), y2: y(t * most), class: "grid" }), svg("text", { x: left - 6, y: y(t * most), "text-anchor": "end", "dominant-baseline": "central" }, percent(t * most, 0))]),
    svg("text", { x: left, y: h - 10 }, text(lo)), hi !== lo && svg("text", { x: right, y: h - 10, "text-anchor": "end" }, text(hi)),
    base("chance", "chance"), base("best_constant", "constant"),
    recipes().map((recipe, i) => {
      const own = usable.filter((p) => p.recipe === recipe).sort((a, b) => at(a) - at(b));
      return svg("g", { class: `series-${i % 4}` }, svg("polyline", { class: "trend-line", points: own.map((p) => [x(p), y(p.accuracy)]).join(" ") }), own.map((p) => {
        const half = Z95 * (p.stderr ?? 0);
        const lines = [`${name}, ${p.recipe}`, `Accuracy ${percent(p.accuracy)} ± ${percent(half)} (95 %), ${count(p.n)} items`, `Guessing ${percent(p.chance)}, best fixed answer ${percent(p.best_constant)}`, `${count(p.tokens)} tokens, ${p.finished_at}`, `Model ${p.model}`];
        return svg("g", { class: `trend-point${p.run_key === state.run ? " selected" : ""}`, role: "button", "data-run": p.run_key, "data-keep": `point ${name} ${p.run_key}`, ...tipped(lines), onclick: set({ run: p.run_key, offset: 0 }), onkeydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); set({ run: p.run_key, offset: 0 })(); } } },
          svg("line", { x1: x(p), x2: x(p), y1: y(p.accuracy - half), y2: y(p.accuracy + half), class: "trend-error" }), svg("circle", { cx: x(p), cy: y(p.accuracy), r: 14, class: "hit" }), mark(x(p), y(p.accuracy), i));
      }));
    }));
}

async function drawItems(box, ticket) {
  const query = new URLSearchParams({ run_key: state.run, benchmark: state.benchmark, ...(state.verdict && { verdict: state.verdict }) });
  main.setAttribute("aria-busy", "true");
  try {
    const found = await getJson(`api/items?${query}&offset=${state.offset}&limit=${PAGE}`);
    if (ticket !== asked) return;
    const last = Math.min(found.total, found.offset + PAGE);
    box.replaceChildren(el("div", { class: "card-head" }, el("h2", null, `Items of ${state.benchmark}`), el("a", { class: "csv", href: `api/items.csv?${query}`, download: "items.csv" }, "Items as CSV")),
      ...(found.items.length ? found.items.map(item) : [el("p", { class: "empty" }, "No item matches.")]),
      el("div", { class: "pager" }, el("button", { type: "button", "data-keep": "page before", disabled: found.offset === 0, onclick: set({ offset: Math.max(0, state.offset - PAGE) }) }, "Previous"),
        `${found.total ? found.offset + 1 : 0} to ${last} of ${found.total}, worst margin first`, el("button", { type: "button", "data-keep": "page after", disabled: last >= found.total, onclick: set({ offset: state.offset + PAGE }) }, "Next")));
  } catch (error) {
    if (ticket === asked) box.replaceChildren(el("p", { class: "empty", role: "alert" }, error.message));
  }
  if (ticket === asked) main.setAttribute("aria-busy", "false");
}

const number = (v) => (isNumber(v) ? v.toFixed(3) : MISSING);

function item(row) {
  const options = row.mean_logprobs.length > 0;
  const signs = (i) => [i === row.gold && "key", i === row.prediction && "chosen", i === row.second_choice && "second"].filter(Boolean).join(", ");
  return el("details", { class: "item" }, el("summary", null, el("span", { class: `tag ${row.correct ? "good" : "bad"}` }, `${row.correct ? "✓" : "✗"} ${(row.verdict ?? "not reviewed").replaceAll("_", " ")}`),
    row.key_suspect && el("span", { class: "tag warn" }, "key suspect"), row.contaminated && el("span", { class: "tag warn" }, "contaminated"), `${row.item_id} · margin ${number(row.margin)}`),
  el("p", null, row.evidence ?? ""), row.pattern && el("p", null, `Pattern: ${row.pattern} (${percent(row.pattern_agreement, 0)} of answers)`), el("pre", { tabindex: 0 }, row.prompt),
  el("div", { class: "table-box", tabindex: 0 }, el("table", null, el("thead", null, el("tr", null, ["Choice", "Sum log-prob", "Mean log-prob", "Role"].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", null, row.choices.map((c, i) => el("tr", null, [c, number(row.sum_logprobs[i]), number(row.mean_logprobs[i]), options ? signs(i) : "accepted answer"].map((v, k) => el("td", { "data-label": ["Choice", "Sum", "Mean", "Role"][k] }, v))))))),
  !options && el("p", null, "Output:"), !options && el("pre", null, row.output));
}

followTheme();
window.addEventListener("scroll", hideTip, { passive: true });
document.getElementById("reload").addEventListener("click", load);
width = main.clientWidth;
new ResizeObserver(() => { if (main.clientWidth !== width) { width = main.clientWidth; hideTip(); if (state.points.length) draw(); } }).observe(main);
load();
