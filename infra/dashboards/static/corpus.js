// Corpus statistics: what became of the documents, by day and source, and why. Elements and escaping are in dom.js.

import { byDay, ENDS, FUNNEL, lengths, MEASURES, ranked, shares, sum } from "./corpus_charts.js";
import { count, copyable, el, followTheme, getJson, hideTip, keptFocus, percent } from "./dom.js";

const ROWS = 400; // of the table; the file has all
const state = { data: null, first: "", last: "", source: "", measure: "documents", share: false };
const main = document.getElementById("main");
let width = 0, asked = 0;

const question = () => new URLSearchParams(Object.entries({ first: state.first, last: state.last, source: state.source }).filter(([, value]) => value));

async function load() {
  const ticket = ++asked;
  main.setAttribute("aria-busy", "true");
  try {
    const found = await getJson(`api/corpus?${question()}`);
    if (ticket !== asked) return;
    state.data = found;
    draw();
  } catch (error) {
    if (ticket !== asked) return;
    document.getElementById("lede").textContent = "The numbers could not be read.";
    main.replaceChildren(el("section", { class: "card notice wide", role: "alert" }, el("h2", null, "Nothing to show"), el("p", null, error.message)));
  }
  main.setAttribute("aria-busy", "false");
}

const ask = (change) => { Object.assign(state, change); hideTip(); load(); };
const show = (change) => () => { Object.assign(state, change); hideTip(); draw(); };

function pick(label, value, options, change) {
  return el("label", { class: "picker" }, `${label} `, el("select", { "aria-label": label, "data-keep": label, onchange: (e) => change(e.target.value) },
    options.map(([v, text]) => el("option", { value: v, selected: v === value }, text))));
}

const toggle = (text, pressed, change) => el("button", { type: "button", class: "toggle", "aria-pressed": String(pressed), "data-keep": text, onclick: show(change) }, text);

function filters({ days, sources }) {
  const first = state.first || days[0], last = state.last || days.at(-1);
  document.getElementById("filters").replaceChildren(
    pick("Source", state.source, [["", "All"], ...sources.map((s) => [s, s || "(unknown)"])], (source) => ask({ source })),
    pick("From", first, days.filter((d) => d <= last).map((d) => [d, d]), (day) => ask({ first: day })),
    pick("To", last, days.filter((d) => d >= first).map((d) => [d, d]), (day) => ask({ last: day })),
    el("a", { class: "csv", href: `api/corpus.csv?${question()}`, download: "corpus.csv" }, "Rows as CSV"));
}

function card(id, title, about, plot, controls) {
  return el("section", { class: `card${id === "days" || id === "table" ? " wide" : ""}`, id },
    el("div", { class: "card-head" }, el("div", null, el("h2", null, title), el("p", null, about)), controls && el("div", { class: "controls" }, controls)), el("div", { class: "plot" }, plot));
}

function draw() {
  const { data } = state, lede = document.getElementById("lede");
  if (!data.days.length) return empty(lede);
  const refocus = keptFocus();
  filters(data);
  const days = new Set(data.funnel.map((row) => row.day)), sources = new Set(data.funnel.map((row) => row.source));
  const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  lede.textContent = `${many(days.size, "day")} of ${many(sources.size, "source")}. Every landed document has exactly one end; a day whose counts do not add up is refused.`;
  const half = (width < 900 ? width : width / 2 - 8) - 40, of = (what) => data.breakdowns[what];
  const landed = sum(data.funnel, "landed", "documents");
  const rejected = sum(data.funnel, "rejected", "documents");
  main.replaceChildren(
    tiles(data, landed),
    card("days", "What became of the documents, by day", "Each bar is one day, or as many days as have room. What landed is what was kept, held out for evaluation, or dropped.",
      [byDay(data.funnel, { width: width - 40, measure: state.measure, share: state.share }), endsLegend()],
      [...Object.keys(MEASURES).map((m) => toggle(MEASURES[m], state.measure === m, { measure: m })), el("span", { class: "gap" }), toggle("Shares", state.share, { share: !state.share })]),
    card("sources", "By source", "Share of each end among the documents that landed.", [shares(data.funnel, half), endsLegend()]),
    card("duplicates", "Duplicates and contamination", "Copies by where the kept one is, and documents dropped for holding a benchmark's words.",
      ranked([...of("duplicate_by_scope").map((r) => ({ ...r, bucket: `copy: ${r.bucket.replaceAll("_", " ")}` })), ...of("contaminated_by_benchmark").map((r) => ({ ...r, bucket: `benchmark: ${r.bucket}` }))], { width: half, whole: landed, of: "landed documents", empty: "No copy and no benchmark's words were found." })),
    card("rules", "Rejected, by rule", "Documents that broke the rule; one document may break several.", ranked(of("rejected_by_rule"), { width: half, whole: landed, of: "landed documents", empty: "No document was rejected." })),
    card("first-rules", "Rejected, by first rule", `The first rule in the recipe's order: these add up to the ${rejected.toLocaleString("en")} rejected documents.`, ranked(of("rejected_by_first_rule"), { width: half, whole: rejected, of: "rejected documents", empty: "No document was rejected." })),
    card("languages", "Languages kept", "As identified where a rule set of the recipe asks for it.", ranked(of("kept_by_language"), { width: half, unknown: "not measured", of: "kept documents", empty: "No document was kept." })),
    card("licences", "Licences kept", "As the landing files gave them.", ranked(of("kept_by_licence"), { width: half, unknown: "unknown", of: "kept documents", empty: "No document was kept." })),
    card("bytes", "Length in bytes", "Documents by length, each bar twice as long as the one before: as they landed, and as they were packed.", lengths([["landed", of("landed_by_bytes")], ["kept", of("kept_by_bytes")]], half)),
    card("tokens", "Length in tokens", "Kept documents by their tokens, ends of documents included.", lengths([["kept", of("kept_by_tokens")]], half)),
    card("table", "Days and sources as a table", data.funnel.length > ROWS ? `The newest ${ROWS} of ${data.funnel.length.toLocaleString("en")} rows; the CSV file has all.` : "Documents by their end; bytes as they landed; tokens of what is kept.", table(data.funnel)));
  refocus();
}

function empty(lede) {
  lede.textContent = "No day has been summarised yet.";
  document.getElementById("filters").replaceChildren();
  main.replaceChildren(el("section", { class: "card notice wide" }, el("h2", null, "No day has been summarised yet"), el("p", null, "Preparing data days counts what became of their documents:"), copyable("moeline run --recipe tiny --days 3"),
    el("p", null, "Days that were prepared by an older version are counted with:"), copyable("moeline stage summarise --recipe tiny --interval YYYY-MM-DD")));
}

function tiles({ funnel, quarantined, breakdowns }, landed) {
  const of = (end) => sum(funnel, end, "documents"), share = (n) => (landed ? percent(n / landed) : "none landed");
  const tile = (label, value, detail, state = "") => el("div", { class: `tile ${state}`, "data-name": label }, el("span", { class: "tile-label" }, label), el("b", null, value), el("span", { class: "tile-detail" }, detail));
  const worst = breakdowns.rejected_by_first_rule[0];
  return el("div", { class: "tiles wide" },
    tile("Landed", count(landed), `${count(sum(funnel, "landed", "bytes"))} bytes${quarantined ? `; ${quarantined.toLocaleString("en")} records could not be read` : ""}`, quarantined ? "warn" : ""),
    tile("Kept for training", count(of("kept")), `${share(of("kept"))} of documents, ${count(sum(funnel, "kept", "tokens"))} tokens`),
    tile("Rejected", count(of("rejected")), `${share(of("rejected"))}${worst ? `, most by ${worst.bucket}` : ""}`),
    tile("Duplicates", count(of("duplicate")), `${share(of("duplicate"))}; contaminated ${share(of("contaminated"))}`));
}

const endsLegend = () => el("ul", { class: "legend" }, ENDS.map((end) => el("li", null, el("span", { class: `key end end-${end}` }), end.replace("_", " "))));

function table(funnel) {
  const head = ["Day", "Source", ...FUNNEL.map((end) => end.replace("_", " ")), "landed bytes", "kept tokens"];
  const cells = (row) => [row.day, row.source || "(unknown)", ...FUNNEL.map((end) => row[end].documents.toLocaleString("en")), row.landed.bytes.toLocaleString("en"), row.kept.tokens.toLocaleString("en")];
  return el("div", { class: "table-box", tabindex: 0 }, el("table", { class: "numbers" }, el("thead", null, el("tr", null, head.map((h, i) => el("th", { scope: "col", class: i > 1 && "number" }, h)))),
    el("tbody", null, [...funnel].reverse().slice(0, ROWS).map((row) => el("tr", null, cells(row).map((v, i) => el("td", { "data-label": head[i], class: i > 1 && "number" }, v)))))));
}

followTheme();
window.addEventListener("scroll", hideTip, { passive: true });
document.getElementById("reload").addEventListener("click", load);
const room = () => main.clientWidth - 2 * parseFloat(getComputedStyle(main).paddingLeft);
width = room();
new ResizeObserver(() => { const now = room(); if (now > 0 && now !== width) { width = now; hideTip(); if (state.data) draw(); } }).observe(main); // 0: hidden
load();
