// Charts of a training as plain SVG: a curve over tokens with what was forecast, and expert load. No state, no fetching.

import { count, el, hideTip, isNumber, showTip, svg } from "./dom.js";

const POINTS = 600; // a longer run is drawn as means of so many stretches

// (x, y) pairs without gaps, in at most POINTS stretches.
export function stretches(xs, ys) {
  const pairs = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => isNumber(x) && isNumber(y));
  const size = Math.ceil(pairs.length / POINTS);
  if (size <= 1) return pairs;
  const found = [];
  for (let i = 0; i < pairs.length; i += size) {
    const part = pairs.slice(i, i + size);
    found.push([part.at(-1)[0], part.reduce((sum, [, y]) => sum + y, 0) / part.length]);
  }
  return found;
}

// Mean of a twentieth of the points around each: what the eye should follow.
export function smoothed(points) {
  const half = Math.floor(points.length / 40);
  if (!half) return points;
  return points.map(([x], i) => {
    const part = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, part.reduce((sum, [, y]) => sum + y, 0) / part.length];
  });
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? rough;
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}

// `band`: (x, predicted, low, high). `marks`: [x, text]. `limit`: a level not to be passed. `end`: where x will stop.
export function curve({ name, xs, ys, band = null, marks = [], limit = null, end = null, smooth = false, fromZero = false, width, format }) {
  const points = stretches(xs, ys);
  if (!points.length) return el("p", { class: "empty" }, "No step has reported this yet.");
  const w = Math.max(250, width), h = 260, left = 58, right = w - 14, top = 10, bottom = h - 30;
  const until = Math.max(end ?? 0, points.at(-1)[0]);
  const seen = points.map(([, y]) => y), goal = band ? [band.at(-1)[2], band.at(-1)[3]] : [];
  let low = fromZero ? 0 : Math.min(...seen, ...goal), high = Math.max(...seen, ...goal, ...(limit ? [limit] : []));
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  if (!fromZero) low -= pad;
  high += pad;
  const x = (v) => left + (v / until) * (right - left), y = (v) => bottom - ((Math.min(high, Math.max(low, v)) - low) / (high - low)) * (bottom - top);
  const path = (list) => list.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  const last = points.at(-1), shown = smooth ? smoothed(points) : points;
  const cursor = svg("g", null);
  const tell = (i, anchor) => {
    const [at, value] = points[i];
    const lines = [name, `${format(value)} after ${count(at)} tokens`];
    const near = band?.find(([tokens]) => tokens >= at);
    if (near) lines.push(`A run of so many tokens was forecast to end at ${format(near[1])} (${format(near[2])} to ${format(near[3])})`);
    cursor.replaceChildren(svg("line", { x1: x(at), x2: x(at), y1: top, y2: bottom, class: "cross" }), svg("circle", { cx: x(at), cy: y(value), r: 4.5, class: "here" }));
    showTip(lines, cursor.lastChild ?? anchor);
  };
  let index = points.length - 1;
  const nearest = (event) => {
    const box = event.currentTarget.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * until;
    index = points.reduce((best, [at], i) => (Math.abs(at - wanted) < Math.abs(points[best][0] - wanted) ? i : best), 0);
    tell(index, event.currentTarget);
  };
  const keys = (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (!move) return;
    event.preventDefault();
    index = Math.min(points.length - 1, Math.max(0, index + move * Math.max(1, Math.round(points.length / 50))));
    tell(index, event.currentTarget);
  };
  const leave = () => { hideTip(); cursor.replaceChildren(); };
  return svg("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `${name} over tokens` },
    ticks(low, high, 5).map((t) => [svg("line", { x1: left, x2: right, y1: y(t), y2: y(t), class: "grid" }), svg("text", { x: left - 6, y: y(t), "text-anchor": "end", "dominant-baseline": "central" }, format(t))]),
    ticks(0, until, w < 420 ? 3 : 6).map((t) => svg("text", { x: x(t), y: h - 10, "text-anchor": x(t) > right - 20 ? "end" : "middle" }, count(t))),
    band && svg("polygon", { class: "forecast-band", points: path([...band.map((p) => [p[0], p[2]]), ...band.map((p) => [p[0], p[3]]).reverse()]) }),
    band && svg("polyline", { class: "forecast-line", points: path(band.filter((p) => p[1] <= high).map((p) => [p[0], p[1]])) }),
    limit !== null && svg("line", { x1: left, x2: right, y1: y(limit), y2: y(limit), class: "limit" }),
    marks.map(([at]) => svg("line", { x1: x(at), x2: x(at), y1: top, y2: bottom, class: "mark-event" })),
    smooth && svg("polyline", { class: "raw", points: path(points) }),
    svg("polyline", { class: "curve", points: path(shown) }),
    cursor,
    svg("rect", {
      x: left, y: top, width: right - left, height: bottom - top, class: "hit", tabindex: 0, role: "img", "aria-label": `${name}: ${format(last[1])} after ${count(last[0])} tokens. Arrow keys go along the curve.`,
      onmousemove: nearest, onmouseleave: leave, onblur: leave, onfocus: (e) => tell(index, e.currentTarget), onkeydown: keys,
    }));
}

// Blue: fewer tokens than the mean of the layer, red: more; the colours end at a quarter and at four times.
function colour(ratio) {
  const at = ratio > 0 ? Math.max(-1, Math.min(1, Math.log2(ratio) / 2)) : -1;
  const [r, g, b] = at < 0 ? [33, 102, 172] : [178, 24, 43], part = Math.abs(at);
  const mix = (c) => Math.round(247 + (c - 247) * part);
  return [`rgb(${mix(r)},${mix(g)},${mix(b)})`, part > 0.55];
}

export function heatMap(step, rows, width) {
  if (!rows?.length) return el("p", { class: "empty" }, "No step has reported its expert load yet.");
  const experts = rows[0].length, left = 56, size = Math.max(3, Math.min(46, (Math.max(250, width) - left - 4) / experts));
  const tall = Math.max(6, Math.min(26, 640 / rows.length)), h = rows.length * tall + 24, w = left + experts * size + 2;
  const every = Math.ceil(28 / size);
  return svg("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `Expert load at step ${step}: ${rows.length} layers by ${experts} experts` },
    rows.map((counts, layer) => {
      const mean = counts.reduce((a, b) => a + b, 0) / experts || 1, ratios = counts.map((c) => c / mean);
      const busiest = ratios.indexOf(Math.max(...ratios)), idlest = ratios.indexOf(Math.min(...ratios)), starved = counts.filter((c) => !c).length;
      const about = [`Layer ${layer + 1} at step ${step}`, `Busiest: expert ${busiest + 1} with ${ratios[busiest].toFixed(2)} x the mean`, `Idlest: expert ${idlest + 1} with ${ratios[idlest].toFixed(2)} x the mean`, `${starved} starved`];
      const mid = layer * tall + tall / 2;
      return svg("g", { class: "layer", tabindex: 0, role: "img", "aria-label": about.join(", "), onfocus: (e) => showTip(about, e.currentTarget), onblur: hideTip, onkeyup: (e) => { if (e.key === "Escape") hideTip(); } },
        (tall >= 12 || layer % Math.ceil(12 / tall) === 0) && svg("text", { x: left - 8, y: mid, "text-anchor": "end", "dominant-baseline": "central" }, `layer ${layer + 1}`),
        ratios.map((ratio, i) => {
          const [fill, strong] = colour(ratio), lines = [`Layer ${layer + 1}, expert ${i + 1}`, `${count(counts[i])} tokens, ${ratio.toFixed(2)} x the mean`, `Step ${step}`];
          return svg("g", { class: "load", onmouseenter: (e) => showTip(lines, e.currentTarget), onmouseleave: hideTip },
            svg("rect", { x: left + i * size, y: layer * tall, width: size, height: tall, fill, class: "cell" }),
            !counts[i] && size > 5 && svg("rect", { x: left + i * size + 1.5, y: layer * tall + 1.5, width: size - 3, height: tall - 3, class: "starved" }),
            size >= 30 && tall >= 16 && svg("text", { x: left + (i + 0.5) * size, y: mid, "text-anchor": "middle", "dominant-baseline": "central", class: strong ? "on-dark" : "on-light" }, ratio.toFixed(1)));
        }));
    }),
    rows[0].map((_, i) => i % every === 0 && svg("text", { x: left + (i + 0.5) * size, y: h - 8, "text-anchor": "middle" }, i + 1)));
}
