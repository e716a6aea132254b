"""``moeline forecast calibration``: were the forecasts right as often as they said? Over every forecast that was registered before its run and came out.

Change here: what calibration is measured by. Not here: who forecasts (jobs/stages/forecast.py), which forecast belongs to which run (services/report.py).

coverage     share of outcomes inside their interval, with Wilson's 95 % interval (Wilson 1927); forecasts say 95 %
bias         mean of predicted / outcome - 1; error: the mean of its size
sharpness    median width of the intervals, as a share of the outcome: covering everything with very wide intervals is no skill
score        mean interval score (Gneiting & Raftery 2007, eq. 43; width + 2/.05 x the distance outside), as a share of the outcome: lower is better
verdict      "too narrow" where so few inside had less than a 5 % chance if the intervals held 95 %; "too wide" cannot be told from few runs
check        the same exact one-sided binomial test with Holm's (1979) step-down over the metrics, so that a false alarm about any of them has at most
             a 5 % chance (Holm needs no independence; the metrics of one run have none). Runs of one recipe are taken as independent, which makes
             the test sharper than it should be where they miss together. A failed check is a warning in ``checks`` and in the next decision (gate.py)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.environment import Environment

CLAIMED = 0.95
_ALARM = 0.05
_PLOT = 31


def calibration(env: Environment) -> dict[str, Any]:
    """What ``--json`` prints: ``metrics``, one summary each, and ``forecasts``, every row they are made of, oldest first."""
    from jobs.services import report

    return of_runs(report.runs_of(report.Records(env), checks=False))


def of_runs(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same over these runs of the report."""
    forecasts = [
        {"run_id": run["run_id"], "recipe": run["recipe"], "finished_at": run["finished_at"], "forecast_id": run["forecast_id"], **_judged(row)}
        for run in runs
        for row in run["forecast"]
        if row["outcome"] is not None
    ]
    names = sorted({row["metric"] for row in forecasts})
    metrics = [{"metric": m, **summarise([row for row in forecasts if row["metric"] == m])} for m in names]
    adjusted = holm([m["chance_of_so_few"] for m in metrics])
    checked = [{**m, "chance_adjusted": p, "check_passed": p >= _ALARM} for m, p in zip(metrics, adjusted, strict=True)]
    return {"metrics": checked, "forecasts": forecasts}


def warnings(found: Mapping[str, Any]) -> list[str]:
    """A sentence per metric whose check failed."""
    return [
        f"past forecasts of {m['metric']} were too sure: {m['inside']} of {m['n']} outcomes inside their 95 % intervals (chance {m['chance_adjusted']:.4f})"
        for m in found["metrics"] if not m["check_passed"]
    ]  # fmt: skip


def holm(chances: Sequence[float]) -> list[float]:
    """P values adjusted by Holm's step-down, in the order given."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    found, highest = [0.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[i]))
        found[i] = highest
    return found


def _judged(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("metric", "predicted", "low", "high", "naive", "outcome")}
    return {**kept, "inside": row["low"] <= row["outcome"] <= row["high"]}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Calibration of forecasts of one metric (at least one); relative measures are None when an outcome is 0."""
    n, inside = len(rows), sum(row["inside"] for row in rows)
    low, high = wilson(inside, n)
    chance = at_most(inside, n, CLAIMED)
    relative = all(row["outcome"] for row in rows)
    errors = [row["predicted"] / row["outcome"] - 1 for row in rows] if relative else []
    compared = [row for row in rows if row["naive"] is not None]
    return {
        "n": n, "inside": inside, "coverage": inside / n, "coverage_low": low, "coverage_high": high, "chance_of_so_few": chance,
        "verdict": "too narrow" if chance < _ALARM else "consistent with 95 %", "chance_adjusted": chance, "check_passed": chance >= _ALARM,
        "bias": statistics.fmean(errors) if errors else None, "error": statistics.fmean(map(abs, errors)) if errors else None,
        "sharpness": statistics.median((row["high"] - row["low"]) / abs(row["outcome"]) for row in rows) if relative else None,
        "score": statistics.fmean(interval_score(row) / abs(row["outcome"]) for row in rows) if relative else None,
        "beats_naive": sum(abs(r["predicted"] - r["outcome"]) < abs(r["naive"] - r["outcome"]) for r in compared), "compared": len(compared),
    }  # fmt: skip


def interval_score(row: Mapping[str, Any]) -> float:
    """Width of the interval plus 2 / (1 - .95) times how far outside it the outcome lies (Gneiting & Raftery 2007, eq. 43), in the metric's unit."""
    outside = max(row["low"] - row["outcome"], row["outcome"] - row["high"], 0.0)
    return float(row["high"] - row["low"] + 2 / (1 - CLAIMED) * outside)


def wilson(inside: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share = inside / n
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def at_most(inside: int, n: int, p: float) -> float:
    """Probability of at most ``inside`` of ``n`` (binomial, 0 < p < 1). In logarithms: the coefficients of some thousand forecasts fit no float."""
    if inside >= n:
        return 1.0
    logs = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p) for k in range(inside + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


def render(found: Mapping[str, Any]) -> str:
    """Summary and a line per forecast, for a terminal."""
    if not found["metrics"]:
        return "No forecast has come out yet: build a model (moeline run), then ask again.\n"
    lines = [f"{'':13}{'inside':>9}  {'coverage (95 %)':>20}  {'bias':>8}  {'error':>7}  {'width':>7}  {'score':>7}  {'beats naive':>11}"]
    for m in found["metrics"]:
        share = f"{m['coverage']:.0%} ({m['coverage_low']:.0%} to {m['coverage_high']:.0%})"
        relative = [_percent(m["bias"], "+.1f"), _percent(m["error"]), _percent(m["sharpness"]), _percent(m["score"])]
        naive = f"{m['beats_naive']}/{m['compared']}"
        inside = f"{m['inside']}/{m['n']}"
        lines.append(
            f"{m['metric']:13}{inside:>9}  {share:>20}  {relative[0]:>8}  {relative[1]:>7}  {relative[2]:>7}  {relative[3]:>7}  {naive:>11}  {m['verdict']}"
        )
    lines += [
        *(f"WARNING: {sentence}" for sentence in warnings(found)),
        "",
        "Every forecast: its interval from ( to ), its prediction |, the outcome o (< or >: outside the line)",
    ]
    for row in found["forecasts"]:
        lines.append(f"{row['metric']:13}{_plot(row)}  {'inside ' if row['inside'] else 'OUTSIDE'}  {_printable(row['run_id'])}")
    return "\n".join(lines) + "\n"


def _percent(value: float | None, form: str = ".1f") -> str:
    return "missing" if value is None else f"{100 * value:{form}} %"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _plot(row: Mapping[str, Any]) -> str:
    """The interval takes the middle half of the line."""
    width = (row["high"] - row["low"]) or 1.0

    def at(value: float) -> int:
        return round((_PLOT - 1) * (0.25 + 0.5 * (value - row["low"]) / width))

    marks: Iterable[tuple[int, str]] = ((at(row["low"]), "("), (at(row["high"]), ")"), (at(row["predicted"]), "|"))
    line = ["·"] * _PLOT
    for place, mark in marks:
        line[min(max(place, 0), _PLOT - 1)] = mark
    outcome = at(row["outcome"])
    line[min(max(outcome, 0), _PLOT - 1)] = "<" if outcome < 0 else ">" if outcome >= _PLOT else "o"
    return "".join(line)
