// Trainings: one run, refreshed while it trains. Only what is new is asked for; what was read stays here. Elements and escaping are in dom.js.

import { count, el, followTheme, getJson, hideTip, isNumber, MISSING, nats, percent, usd } from "./dom.js";
import { curve, heatMap } from "./training_charts.js";

const RUNNING_MS = 2000, IDLE_MS = 15000, LISTED = 20;
const main = document.getElementById("main"), lede = document.getElementById("lede"), filters = document.getElementById("filters");
const state = { trainings: [], run: new URLSearchParams(location.search).get("run") ?? "", seen: null, at: null };
let cards = null, width = 0, timer = 0, asked = 0, polls = 0;

const empty = () => ({ file: "", offset: 0, columns: {}, heat: [], events: [], about: {}, forecast: null, state: "", result: null });
const money = (x) => (state.seen.about.currency && state.seen.about.currency !== "USD" && isNumber(x) ? `${usd(x).replace("$", "")} ${state.seen.about.currency}` : usd(x));
const last = (name) => state.seen.columns[name]?.findLast(isNumber);
const recent = (name, n = 20) => { const found = (state.seen.columns[name] ?? []).filter(isNumber).slice(-n); return found.length ? found.reduce((a, b) => a + b, 0) / found.length : undefined; };

async function list() {
  state.trainings = (await getJson("api/trainings")).trainings;
  if (!state.run) state.run = state.trainings[0]?.run_key ?? "";
  const name = (t) => `${t.recipe || "unnamed"} · ${t.run_key.slice(0, 8)} · ${t.state}`;
  const picker = filters.querySelector("select");
  if (picker && picker === document.activeElement) return;
  filters.replaceChildren(el("label", { class: "picker" }, "Training ", el("select", { "aria-label": "Training", onchange: (e) => choose(e.target.value) },
    state.trainings.map((t) => el("option", { value: t.run_key, selected: t.run_key === state.run }, name(t))))));
}

function choose(run) {
  Object.assign(state, { run, seen: null, at: null });
  cards = null;
  main.setAttribute("aria-busy", "true");
  poll();
}

async function poll() {
  clearTimeout(timer);
  const ticket = ++asked;
  try {
    if (polls++ % LISTED === 0) await list();
    if (!state.run) nothing();
    else {
      let found;
      do {
        const { file, offset } = state.seen ?? empty();
        found = await getJson(`api/training?${new URLSearchParams({ run_key: state.run, file, offset })}`);
        if (ticket !== asked) return;
        take(found);
      } while (found.more);
      draw();
    }
  } catch (error) {
    if (ticket !== asked) return;
    lede.textContent = "The run could not be read.";
    if (!cards) main.replaceChildren(el("section", { class: "card notice wide", role: "alert" }, el("h2", null, "Nothing to show"), el("p", null, error.message)));
  }
  main.setAttribute("aria-busy", "false");
  timer = setTimeout(() => { if (!document.hidden) poll(); }, state.seen?.state === "running" ? RUNNING_MS : IDLE_MS);
}

function take(found) {
  if (found.begins || !state.seen) state.seen = { ...empty(), about: found.about ?? {}, forecast: found.forecast ?? null };
  const seen = state.seen;
  for (const [name, values] of Object.entries(found.columns)) seen.columns[name] = (seen.columns[name] ?? []).concat(values);
  seen.heat = seen.heat.concat(found.heat);
  seen.events = seen.events.concat(found.events);
  Object.assign(seen, { file: found.file, offset: found.offset, state: found.state, result: found.result ?? null });
}

function nothing() {
  lede.textContent = "No training has taken a step here yet.";
  main.replaceChildren(el("section", { class: "card notice wide" }, el("h2", null, "Nothing to show"), el("p", null, "Start one: moeline run --recipe tiny")));
}

function card(id, title, about, wide, more) {
  const plot = el("div", { class: "plot" });
  const node = el("section", { class: `card${wide ? " wide" : ""}`, id }, el("div", { class: "card-head" }, el("div", null, el("h2", null, title), el("p", null, about))), more, plot);
  return { node, plot, show: (make) => { if (!plot.matches(":hover, :focus-within") || !plot.firstChild) plot.replaceChildren(make()); } };
}

const legend = (items) => el("ul", { class: "legend" }, items.map(([key, text]) => el("li", null, el("span", { class: `key ${key}` }), text)));

function build() {
  const slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Step of the expert load", oninput: () => { state.at = Number(slider.value) >= Number(slider.max) ? null : Number(slider.value); hideTip(); drawHeat(true); } });
  const step = el("output", null);
  const { forecast, about } = state.seen;
  cards = {
    tiles: el("div", { class: "tiles" }), slider, step,
    loss: card("loss", "Loss", forecast ? `Forecast before it began: ${nats(forecast.predicted)} (95 %: ${nats(forecast.low)} to ${nats(forecast.high)}) on held-out text at the end. The band says where runs of so many tokens end; before its learning rate decays, a run lies above it.` : "No forecast was made for this training.", true,
      legend([["key-curve", "training loss (thin: every step)"], ...(forecast ? [["key-forecast", "forecast, 95 % band"]] : []), ["key-event", "resumed, batch skipped, checkpoint failed"]])),
    heat: card("heat", "Expert load", "Tokens of each expert over the mean of its layer: blue fewer, red more, framed none.", true,
      el("div", { class: "replay" }, "Step ", slider, step, el("span", { class: "heat-scale", role: "img", "aria-label": "from a quarter of the mean to four times the mean" }), "¼ to 4 times")),
    speed: card("speed", "Tokens per second", "As every step reports it; MFU by documented FLOPs over the machine's peak.", false),
    cost: card("cost", "Cost so far", about.budget_usd ? "All attempts, at this environment's prices. The dashed line is the budget, of which the forecast, evaluation and review take their part." : "All attempts, at this environment's prices.", false,
      about.budget_usd && legend([["key-limit", "budget"]])),
    events: card("events", "What happened", "Restarts, batches that moved no weights, checkpoints that could not be written.", true),
  };
  main.replaceChildren(cards.tiles, ...["loss", "heat", "speed", "cost", "events"].map((name) => cards[name].node));
}

const tile = (label, value, detail, kind = "") => el("div", { class: `tile ${kind}` }, el("span", { class: "tile-label" }, label), el("b", null, value), el("span", { class: "tile-detail" }, detail));

function tiles() {
  const { about, result, forecast } = state.seen, done = last("step"), speed = recent("tokens_per_second");
  const left = about.tokens && isNumber(speed) && state.seen.state === "running" ? (about.tokens - last("tokens")) / speed : null;
  const final = result?.held_out_loss, inside = forecast && isNumber(final) && final >= forecast.low && final <= forecast.high;
  const verdict = !forecast ? "no forecast" : isNumber(final) && !result.ended_early ? `${inside ? "inside" : "outside"} the forecast` : `forecast ${nats(forecast.predicted)}`;
  return [
    tile("Step", done === undefined ? MISSING : about.steps ? `${done.toLocaleString("en")} of ${about.steps.toLocaleString("en")}` : done.toLocaleString("en"), left === null ? `${count(last("tokens"))} tokens` : `about ${Math.max(1, Math.round(left / 60)).toLocaleString("en")} min left`),
    isNumber(final) ? tile("Held-out loss", nats(final), verdict, forecast && !result.ended_early ? (inside ? "good" : "bad") : "") : tile("Loss, last 20 steps", nats(recent("loss")), verdict),
    tile("Tokens per second", count(speed), `MFU ${percent(recent("mfu"))}`),
    tile("Cost so far", money(last("cost_usd")), about.budget_usd ? `budget ${money(about.budget_usd)}` : "no budget"),
  ];
}

function drawHeat(always) {
  const { heat } = state.seen, top = Math.max(0, heat.length - 1);
  cards.slider.max = top;
  if (state.at === null) cards.slider.value = top;
  const [step, rows] = heat[state.at ?? top] ?? [0, []];
  cards.step.textContent = heat.length ? String(step) : MISSING;
  const make = () => heatMap(step, rows, width);
  if (always) cards.heat.plot.replaceChildren(make());
  else cards.heat.show(make);
}

function draw() {
  const { seen } = state, { columns, about } = seen;
  if (!cards) build();
  width = cards.loss.plot.clientWidth;
  const half = cards.speed.plot.clientWidth, words = { "ended early": "early" };
  const recipe = about.recipe || state.trainings.find((t) => t.run_key === state.run)?.recipe || "unnamed";
  const why = seen.result?.ended_early ? ` It ended early: its ${seen.result.ended_early} was used up.` : "";
  lede.replaceChildren(el("span", { class: `state ${words[seen.state] ?? seen.state}` }, seen.state), ` ${recipe}`, about.params_total ? `, ${count(about.params_active)} of ${count(about.params_total)} parameters active, top ${about.top_k} of ${about.experts} experts in ${about.layers} layers.` : ".", why);
  cards.tiles.replaceChildren(...tiles());
  const at = new Map(columns.step?.map((s, i) => [s, columns.tokens[i]]));
  const marks = seen.events.filter((e) => e.what !== "started").map((e) => [at.get(e.step) ?? at.get(e.step + 1), e.what]).filter(([x]) => isNumber(x));
  const common = { xs: columns.tokens ?? [], end: about.tokens ?? null };
  cards.loss.show(() => curve({ ...common, name: "Loss", ys: columns.loss ?? [], band: seen.forecast?.points ?? null, marks, smooth: true, width, format: nats }));
  cards.speed.show(() => curve({ ...common, name: "Tokens per second", ys: columns.tokens_per_second ?? [], fromZero: true, smooth: true, width: half, format: count }));
  cards.cost.show(() => curve({ ...common, name: "Cost so far", ys: columns.cost_usd ?? [], fromZero: true, limit: nearBudget(about.budget_usd), width: half, format: money }));
  drawHeat(false);
  cards.events.plot.replaceChildren(seen.events.length ? el("ul", null, seen.events.slice(-50).reverse().map((e) => el("li", null, `Step ${e.step.toLocaleString("en")}: ${e.what}`))) : el("p", { class: "empty" }, "Nothing."));
}

// A budget far above what is spent would flatten the curve: it is drawn once a tenth of it is used.
const nearBudget = (budget) => (isNumber(budget) && last("cost_usd") >= budget / 10 ? budget : null);

followTheme();
window.addEventListener("scroll", hideTip, { passive: true });
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
new ResizeObserver(() => { if (cards && cards.loss.plot.clientWidth !== width) { hideTip(); draw(); } }).observe(main);
poll();
