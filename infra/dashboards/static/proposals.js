// Where a model fails and what to train on next, with what that costs. The numbers are jobs/proposals.py's; elements and escaping are dom.js's.

import { copyable, count, el, isNumber, MISSING, percent, usd } from "./dom.js";

const cells = (head, rows) => el("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Table, scrolls sideways" },
  el("table", null, el("thead", null, el("tr", null, head.map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", null, rows.map((row) => el("tr", null, row.map((cell, i) => el("td", { "data-label": head[i] }, cell)))))));

// The body of the card: `found` is the API's answer, or null while it is being read.
export function proposals(found) {
  if (!found) return [el("p", { class: "empty" }, "Reading the failure groups…")];
  if (found.problem) return [el("p", { class: "empty" }, found.problem)];
  if (!found.groups.length) return [el("p", { class: "empty" }, "The model failed nowhere.")];
  return [found.notes.map((note) => el("p", { class: "empty" }, note)), found.groups.map((g) => group(g)), el("p", { class: "small" }, found.rule), el("p", { class: "small" }, found.mixture), el("p", { class: "small" }, prices(found.price))];
}

function prices(price) {
  const million = (x) => (isNumber(x) ? `${usd(1e6 * x)} per million tokens` : "not measured");
  return `Prices were measured in run ${price.from_run}, at the list prices of environment “${price.environment}” (${price.currency}): training ${million(price.train_per_token)}, proxies ${million(price.forecast_per_token)}, preparing ${million(price.prepare_per_token)}.`;
}

function group(g) {
  const p = g.proposal, made = isNumber(p.recipe_tokens);
  const where = [g.benchmark, g.subset, g.verdict.replaceAll("_", " ")].filter(Boolean).join(" · ");
  return el("details", { class: "item", "data-group": g.failure_group },
    el("summary", null, el("span", { class: "tag" }, `${g.n} of ${g.n_items} failed`), `${where} · ${made ? `${count(p.tokens)} tokens more, ${usd(p.added_usd)}` : `${count(p.to_land)} tokens to land`}`),
    g.words.length > 0 && el("p", null, `Its words: ${g.words.join(", ")}`),
    el("h3", null, "What to train on"),
    cells(["Source", "Proposed", "In the corpus, untrained", "To be landed", "More in the recipe"], p.sources.map((s) => [s.source || "one that is not there yet", count(s.wanted), count(s.left), count(s.to_land), made ? count(s.gets) : MISSING])),
    made
      ? el("p", null, `As a recipe: ${count(p.recipe_tokens)} tokens, ${count(p.added_tokens)} more than this run. ${usd(p.added_usd)} for the added ones, ${usd(p.build_usd)} for the whole build. ${shares(p.weights)}${missing(p)}`)
      : el("p", null, "The corpus holds nothing like it that this run has not trained on: land text first."),
    isNumber(p.landing_usd) && el("p", null, `Preparing what is landed: ${usd(p.landing_usd)}.`),
    g.command && copyable(g.command),
    el("h3", null, "Nearest training documents"),
    g.nearest_documents.length
      ? cells(["Likeness", "Source", "Document", "Licence"], g.nearest_documents.map((d) => [d.cosine.toFixed(2), d.source, d.uri, d.licence ?? MISSING]))
      : el("p", { class: "empty" }, "None of the sampled documents has a word in common with them."),
  );
}

function shares(weights) {
  const total = Object.values(weights).reduce((sum, one) => sum + one, 0);
  return `Weighed ${Object.entries(weights).map(([source, one]) => `${source} ${percent(one / total, 0)}`).join(", ")}.`;
}

const missing = (p) => (p.not_priced.length ? ` Not in these prices, because not measured in this run: ${p.not_priced.join(", ")}.` : "");

export const aboutProposals = (found) => (found && !found.problem
  ? `${count(found.failures)} wrong answers in ${found.groups.length} ${found.groups.length === 1 ? "group" : "groups"}, ${percent(found.tokens / found.corpus_tokens, 0)} of the corpus trained on. Open one for its proposal and the command that makes a recipe of it.`
  : "Wrong answers that belong together, the training text nearest to them, and what more of it costs.");
