// Which runs and charges the page shows: by recipe, suite and day. Columns of the API become objects here.

import { el } from "./dom.js";

export const NO_FILTER = { recipe: "", suite: "", first: "", last: "" };

export const rowsOf = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));

export const isFiltered = (f) => Boolean(f.recipe || f.suite || f.first || f.last);

const dayOf = (row) => (row.day ?? row.finished_at ?? row.started ?? "").slice(0, 10);

// A filter on what a row does not have leaves it in.
export function matches(row, f) {
  const day = dayOf(row);
  return (!f.recipe || row.recipe === undefined || row.recipe === f.recipe) && (!f.suite || row.suite === undefined || row.suite === f.suite)
    && (!f.first || !day || day >= f.first) && (!f.last || !day || day <= f.last);
}

// The same filter as a query of api/figure.csv.
export function csvLink(name, f) {
  const query = new URLSearchParams({ name, ...Object.fromEntries(Object.entries(f).filter(([, value]) => value)) });
  return csvFrom(`api/figure.csv?${query}`, name);
}

export const csvFrom = (href, name, text = "CSV") => el("a", { class: "csv", href, download: `${name}.csv`, "data-figure": name, "aria-label": `${name} as CSV` }, text);

export function filterBar(runs, spend, f, onchange) {
  const names = (of) => [...new Set(of)].filter((name) => name !== null && name !== undefined).sort();
  const choice = (label, key, options, all) => el("label", null, `${label} `, el("select", {
    "data-keep": `filter-${key}`, "aria-label": label, onchange: (e) => onchange({ ...f, [key]: e.target.value }),
  }, el("option", { value: "" }, all), options.map((o) => el("option", { value: o, selected: o === f[key] }, o))));
  const day = (label, key) => el("label", null, `${label} `, el("input", {
    type: "date", value: f[key], "data-keep": `filter-${key}`, "aria-label": label, onchange: (e) => onchange({ ...f, [key]: e.target.value }),
  }));
  return el("form", { class: "filters", "aria-label": "Filters", onsubmit: (e) => e.preventDefault() },
    choice("Recipe", "recipe", names([...runs.map((r) => r.recipe), ...spend.map((s) => s.recipe)]), "all recipes"),
    choice("Suite", "suite", names(runs.map((r) => r.suite)), "all suites"), day("From", "first"), day("To", "last"),
    isFiltered(f) && el("button", { type: "button", "data-keep": "filter-clear", onclick: () => onchange(NO_FILTER) }, "Clear"));
}
