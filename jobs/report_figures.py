"""The figures of ``moeline report --html`` as SVG: each takes rows of jobs/decision.py and returns markup. Every text from data goes through escape().

Change here: how a figure looks on paper. Not here: what it holds (decision.py), the page around it (report_page.py). No figure has a script or a
style of its own: positions and shapes are attributes, colours are classes of the page's one style sheet. Marks differ in shape as well as colour.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

Z95 = 1.959964
PHASES = {
    "prepare": "prepare data", "proxy": "forecast proxies", "train": "train", "eval": "evaluate, review", "register": "register", "checks": "checks",
    "idle": "idle", "storage": "storage",
}  # fmt: skip
WIDTH, LEFT, RIGHT, BOTTOM = 480, 52, 10, 34
MOST_MARKS = 400  # beyond, the dominated runs are one path of dots
MOST_BUCKETS = 40
METRICS = {"loss": "held-out loss", "accuracy": "accuracy", "cost_usd": "cost of training", "wall_seconds": "training time"}


def usd(value: float | None) -> str:
    if value is None:
        return "missing"
    if value != 0 and abs(value) < 0.00005:
        return "<$0.0001"
    return f"${value:.4f}" if abs(value) < 1 else f"${value:,.2f}"


def points(value: float | None) -> str:
    return "missing" if value is None else f"{value:+.1f}"


def percent(value: float | None, digits: int = 1) -> str:
    return "missing" if value is None else f"{100 * value:.{digits}f} %"


def scatter(rows: Sequence[Mapping[str, Any]], waiting: Sequence[Mapping[str, Any]]) -> str:
    """Cost (log) against accuracy with 95 % bars; the front is joined; a hollow diamond is a forecast, joined to its outcome where there is one."""
    shown = [r for r in rows if (r["cost_usd"] or 0) > 0 and r["accuracy"] is not None]
    coming = [r for r in waiting if (r["cost_usd"] or 0) > 0]
    if not shown and not coming:
        return _empty("No run has both a cost and a score yet.")
    height = 250
    forecast = [r for r in shown if r["accuracy_forecast"] is not None and (r["cost_forecast_usd"] or 0) > 0]
    x = _scale([r["cost_usd"] for r in (*shown, *coming)] + [r["cost_forecast_usd"] for r in forecast], LEFT, WIDTH - RIGHT, log=True)
    halves = [Z95 * (r["accuracy_stderr"] or 0) for r in shown]
    ends = [r["accuracy"] + sign * half for r, half in zip(shown, halves, strict=True) for sign in (-1, 1)]
    ends += [r["accuracy_forecast"] for r in forecast] + [r[k] for r in coming for k in ("accuracy_low", "accuracy_high")]
    y = _scale(ends, height - BOTTOM, 8, log=False)
    parts = [_axes(x, y, height, usd_tick, lambda v: percent(v, 0), "cost of the whole run, USD (log)")]
    parts += [_front([r for r in shown if r["on_front"]], x, y)]
    few = len(shown) <= MOST_MARKS
    dots = "" if few else "".join(f"M{x(r['cost_usd']):.1f} {y(r['accuracy']):.1f}h0" for r in shown if not r["on_front"])
    parts += [f'<path class="dots" d="{dots}"/>'] if dots else []
    for row, half in sorted(zip(shown, halves, strict=True), key=lambda pair: pair[0]["on_front"]):
        if few or row["on_front"]:
            parts.append(_run_mark(row, half, x, y, joined=few))
    for row in coming:
        parts.append(_coming(row, x, y))
    return _svg(height, f"Cost against accuracy of {len(shown)} runs", parts)


def _run_mark(row: Mapping[str, Any], half: float, x: Scale, y: Scale, *, joined: bool) -> str:
    cx, cy = x(row["cost_usd"]), y(row["accuracy"])
    about = f"{row['recipe']}, {row['run_id']}: {percent(row['accuracy'])} ± {percent(half)} for {usd(row['cost_usd'])}"
    parts = [f"<title>{escape(about)}</title>"]
    if joined and row["accuracy_forecast"] is not None and (row["cost_forecast_usd"] or 0) > 0:
        fx, fy = x(row["cost_forecast_usd"]), y(row["accuracy_forecast"])
        parts += [_line(cx, cy, fx, fy, "join"), _diamond(fx, fy)]
    parts += [_line(cx, y(row["accuracy"] - half), cx, y(row["accuracy"] + half), "err")] if half else []
    parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{4.5 if row["on_front"] else 3}"/>')
    return f'<g class="run{" best" if row["on_front"] else ""}" data-run="{escape(row["run_id"])}">{"".join(parts)}</g>'


def _coming(row: Mapping[str, Any], x: Scale, y: Scale) -> str:
    at = x(row["cost_usd"])
    about = f"{row['recipe']}: forecast {percent(row['accuracy_forecast'])} for {usd(row['cost_usd'])}"
    drawn = _line(at, y(row["accuracy_low"]), at, y(row["accuracy_high"]), "band") + _diamond(at, y(row["accuracy_forecast"]))
    return f'<g class="coming" data-recipe="{escape(row["recipe"])}"><title>{escape(about)}</title>{drawn}</g>'


def _front(rows: Iterable[Mapping[str, Any]], x: Scale, y: Scale) -> str:
    """A step line per suite: what the best score is that so much money has bought."""
    suites = defaultdict(list)
    for row in rows:
        suites[row["suite"]].append(row)
    lines = []
    for alike in suites.values():
        ordered = sorted(alike, key=lambda r: (r["cost_usd"], r["accuracy"]))
        path = f"M{x(ordered[0]['cost_usd']):.1f} {y(ordered[0]['accuracy']):.1f}"
        path += "".join(f"H{x(r['cost_usd']):.1f}V{y(r['accuracy']):.1f}" for r in ordered[1:]) + f"H{WIDTH - RIGHT}"
        lines.append(f'<path class="front" d="{path}"/>')
    return "".join(lines)


def forecasts(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> str:
    """Where every outcome lay in its 95 % interval, a row per metric: dots inside, crosses outside, far ones at the edge."""
    from jobs.calibration_plot import REACH, position

    if not judged:
        return _empty("No forecast has come out yet.")
    left, row_height = 158, 34
    scale = (WIDTH - left - RIGHT) / (2 * REACH)
    middle, height = left + REACH * scale, 22 + row_height * len(judged)
    parts = [_text(middle, 11, "as predicted", "middle"), _text(middle - scale, 11, "low", "middle"), _text(middle + scale, 11, "high", "middle")]
    for number, metric in enumerate(judged):
        top = 18 + row_height * number
        label = f"{metric['inside']} of {metric['n']} inside"
        parts.append(f'<rect class="band" x="{middle - scale:.1f}" y="{top}" width="{2 * scale:.1f}" height="{row_height - 8}"/>')
        parts.append(_line(middle, top, middle, top + row_height - 8, "front") + _text(0, top + 11, METRICS.get(metric["metric"], metric["metric"])))
        parts.append(_text(0, top + 23, f"{label}, {metric['verdict']}"))
        own = [r for r in rows if r["metric"] == metric["metric"]][-MOST_MARKS:]
        for i, row in enumerate(own):
            at, mid = middle + position(row) * scale, top + 4 + (row_height - 16) * (i + 0.5) / len(own)
            shape = f'<circle cx="{at:.1f}" cy="{mid:.1f}" r="2.6"/>' if row["inside"] else f'<path d="M{at - 3:.1f} {mid - 3:.1f}l6 6m0-6l-6 6"/>'
            parts.append(f'<g class="{"inside" if row["inside"] else "outside"}" data-metric="{escape(row["metric"])}">{shape}</g>')
    return _svg(height, "; ".join(f"{m['metric']}: {m['inside']} of {m['n']} outcomes inside" for m in judged), parts)


def bucketed(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """``spend`` by day, week (from Monday) or month, the first that gives at most 40 columns (months however many).

    Returns the unit, and [usd, wasted] by bucket and phase.
    """
    days = sorted({r["day"] for r in rows})
    span = (dt.date.fromisoformat(days[-1]) - dt.date.fromisoformat(days[0])).days + 1 if days else 0
    unit = "day" if span <= MOST_BUCKETS else "week" if span <= 7 * (MOST_BUCKETS - 1) else "month"
    found: dict[str, dict[str, list[float]]] = {}
    for r in rows:
        date = dt.date.fromisoformat(r["day"])
        start = date if unit == "day" else date - dt.timedelta(days=date.weekday()) if unit == "week" else date.replace(day=1)
        both = found.setdefault(start.isoformat(), {}).setdefault(r["phase"], [0.0, 0.0])
        both[0] += r["usd"]
        both[1] += r["wasted_usd"]
    return unit, dict(sorted(found.items()))


def spend(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column per day, week or month with a charge, phases stacked; the wasted part of a column is the bar left of it."""
    if not rows:
        return _empty("No charge is recorded yet.")
    unit, found = bucketed(rows)
    height = 190
    most = max(sum(max(0.0, v[0]) for v in phases.values()) for phases in found.values()) or 1.0
    y = Scale(0.0, most * 1.05, height - BOTTOM, 8, log=False)
    step = (WIDTH - LEFT - RIGHT) / len(found)
    parts = [_grid(y, height, usd_tick)]
    for i, (bucket, phases) in enumerate(found.items()):
        left, at = LEFT + i * step + step * 0.14, 0.0
        for phase in sorted(phases, key=lambda p: list(PHASES).index(p) if p in PHASES else 99):
            dollars = max(0.0, phases[phase][0])
            box = (left, y(at + dollars), min(step * 0.72, 40), max(0.3, y(at) - y(at + dollars)))
            parts.append(_column(bucket, phase, phases[phase][0], box))
            at += dollars
        lost = sum(v[1] for v in phases.values())
        if lost > 0:
            parts.append(
                f'<rect class="wasted" x="{left - step * 0.1:.1f}" y="{y(lost):.1f}" width="{max(1.5, step * 0.07):.1f}" height="{y(0) - y(lost):.1f}"/>'
            )
        if i % max(1, math.ceil(len(found) / 6)) == 0:
            parts.append(
                _text(left + min(step * 0.36, 20), height - 18, bucket[5:] if unit == "day" else bucket[2:] if unit == "week" else bucket[:7], "middle")
            )
    parts.append(_text((LEFT + WIDTH) / 2, height - 3, f"by {unit}, UTC; the narrow bar is wasted", "middle"))
    return _svg(height, f"Dollars by {unit} and phase", parts)


def _column(bucket: str, phase: str, dollars: float, box: tuple[float, float, float, float]) -> str:
    x, y, width, height = box
    data = f'data-bucket="{bucket}" data-phase="{escape(phase)}" data-usd="{dollars!r}"'
    about = f"<title>{escape(f'{bucket} {phase}: {usd(dollars)}')}</title>"
    kind = phase if phase in PHASES else "other"
    return f'<rect class="p-{kind}" {data} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">{about}</rect>'


def budget(rows: Sequence[Mapping[str, Any]]) -> str:
    """This month's spending (all recipes) added up by day, its projection at this pace (dashed) and the budget (a thick line)."""
    own = [r for r in rows if r["recipe"] is None]
    if not own:
        return _empty("Nothing was charged this month.")
    height, first = 150, dt.date.fromisoformat(f"{own[0]['month']}-01")
    days = ((first + dt.timedelta(days=32)).replace(day=1) - first).days
    top = max(own[0]["projected_usd"], own[-1]["so_far_usd"], own[0]["limit_usd"] or 0.0) or 1.0
    x, y = Scale(0, days, LEFT, WIDTH - RIGHT, log=False), Scale(0.0, top * 1.08, height - BOTTOM, 8, log=False)
    path = f"M{x(0):.1f} {y(0):.1f}" + "".join(f"H{x(int(r['day'][8:])):.1f}V{y(r['so_far_usd']):.1f}" for r in own)
    last = int(own[-1]["day"][8:])
    parts = [_grid(y, height, usd_tick), f'<path class="sofar" d="{path}"/>']
    parts.append(_line(x(last), y(own[-1]["so_far_usd"]), x(days), y(own[0]["projected_usd"]), "projected"))
    if own[0]["limit_usd"] is not None:
        parts.append(_line(LEFT, y(own[0]["limit_usd"]), WIDTH - RIGHT, y(own[0]["limit_usd"]), "limit"))
    parts += [_text(x(d), height - 18, str(d), "middle") for d in range(5, days + 1, 5)]
    parts.append(_text((LEFT + WIDTH) / 2, height - 3, f"day of {own[0]['month']}", "middle"))
    return _svg(height, f"Spent {usd(own[-1]['so_far_usd'])}, projected {usd(own[0]['projected_usd'])}", parts)


# -- scales, axes and marks


class Scale:
    """Maps ``low``..``high`` to pixels ``start``..``end``."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        f: Callable[[float], float] = math.log10 if self.log else float
        return self.start + (f(value) - f(self.low)) / ((f(self.high) - f(self.low)) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            found = [m * 10.0**p for p in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1) for m in (1, 2, 5)]
            inside = [t for t in found if self.low <= t <= self.high]
            return inside if len(inside) <= 7 else [t for t in inside if f"{t:e}"[0] == "1"]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _scale(values: Sequence[float], start: float, end: float, *, log: bool) -> Scale:
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** 0.08, 1.35)
        return Scale(low / factor, high * factor, start, end, log=True)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 0.1
    return Scale(low - pad, high + pad, start, end, log=False)


def usd_tick(value: float) -> str:
    return "$0" if value == 0 else f"${value:.0e}" if abs(value) < 0.0001 else f"${value:,.4g}"


def _axes(x: Scale, y: Scale, height: float, format_x: Callable[[float], str], format_y: Callable[[float], str], label: str) -> str:
    ticks = "".join(_text(x(t), height - 18, format_x(t), "middle") for t in x.ticks())
    return _grid(y, height, format_y) + ticks + _text((LEFT + WIDTH) / 2, height - 3, label, "middle")


def _grid(y: Scale, height: float, form: Callable[[float], str]) -> str:
    lines = "".join(_line(LEFT, y(t), WIDTH - RIGHT, y(t), "grid") + _text(LEFT - 5, y(t) + 3, form(t), "end") for t in y.ticks())
    return lines + _line(LEFT, height - BOTTOM, WIDTH - RIGHT, height - BOTTOM, "axis")


def _svg(height: float, about: str, parts: Iterable[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path class="forecast" d="M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5-4.5z"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _empty(text: str) -> str:
    return f'<p class="empty">{escape(text)}</p>'
