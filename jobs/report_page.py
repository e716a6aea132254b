"""``moeline report --html FILE``: the decision figures on one printable page that opens offline.

Change here: the page, its style, its sentences. Not here: what is in it (decision.py), the drawings (report_figures.py).
One file: no script, no network, no font, no image. Its own policy forbids all of that too, and allows its one style sheet by hash, so that a name
that slipped through escaping could neither load nor run anything. Every text from data goes through escape().
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jobs import decision, report_figures
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.report_figures import METRICS, PHASES, percent, points, usd
from jobs.services.results import write_whole

STYLE = """
:root{color-scheme:light;font:11px/1.35 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#18212c}
@page{size:A4;margin:9mm}
*{box-sizing:border-box}body{margin:0 auto;max-width:1000px;padding:12px;background:#fff;font-variant-numeric:tabular-nums}
h1{font-size:18px;margin:0}h2{font-size:12.5px;margin:0 0 2px}p{margin:0 0 4px;color:#4d5866}.lede{margin-bottom:8px}
main{display:grid;grid-template-columns:1fr 1fr;gap:8px 14px}section{break-inside:avoid;border-top:1px solid #d5dbe2;padding-top:5px;min-width:0}
.wide{grid-column:1/-1}svg{display:block;width:100%;height:auto}svg text{font-size:10px;fill:#4d5866}
table{border-collapse:collapse;width:100%;font-size:9.5px}th,td{text-align:left;padding:1.5px 6px 1.5px 0}
th,td{border-bottom:1px solid #e8ebef;vertical-align:top;overflow-wrap:anywhere}
th{color:#4d5866;font-weight:600}.n{text-align:right;white-space:nowrap}code{overflow-wrap:anywhere}.empty{padding:10px 0}
.tiles{display:flex;flex-wrap:wrap;gap:6px 22px;margin-bottom:8px}.tiles div{min-width:110px}.tiles b{display:block;font-size:17px}.tiles span{color:#4d5866}
.grid{stroke:#eceff3}.axis{stroke:#9aa6b5}.front{fill:none;stroke:#0072b2;stroke-width:1.3;stroke-dasharray:5 3}.err{stroke:#18212c}
.run circle{fill:#9aa6b5}.run.best circle{fill:#0072b2}.dots{stroke:#9aa6b5;stroke-width:3.4;stroke-linecap:round;opacity:.4;fill:none}
.forecast{fill:#fff;stroke:#d55e00;stroke-width:1.4}.join{stroke:#d55e00;stroke-dasharray:2 2}.coming .band{stroke:#d55e00;stroke-width:5;opacity:.3}
rect.band{fill:#d8eaf6}.inside circle{fill:#0072b2}.outside path{stroke:#b23a00;stroke-width:1.6;fill:none}
.p-prepare{fill:#0072b2}.p-proxy{fill:#e69f00}.p-train{fill:#d55e00}.p-eval{fill:#009e73}.p-register{fill:#cc79a7}.p-checks{fill:#56b4e9}.p-idle{fill:#8a94a3}
.p-storage{fill:#c9cfd6}.p-other{fill:#5a5a5a}.wasted{fill:#18212c}.sofar{fill:none;stroke:#0072b2;stroke-width:2}
.projected{stroke:#0072b2;stroke-width:1.5;stroke-dasharray:4 3}.limit{stroke:#18212c;stroke-width:2.5}
.legend{display:flex;flex-wrap:wrap;gap:2px 10px;padding:0;margin:2px 0 0;list-style:none}
.legend svg{display:inline-block;width:10px;height:10px;vertical-align:-1px;margin-right:3px}
@media print{body{padding:0;max-width:none;zoom:.7}}
@media screen and (max-width:640px){main{grid-template-columns:minmax(0,1fr)}section{overflow-x:auto}}
"""
MOST_RUNS, MOST_NEXT, MOST_LOST = 10, 5, 5


def write(env: Environment, file: str) -> dict[str, Any]:
    """Write the page whole; returns the file, its bytes and how many runs it shows. Raises MoelineError where it cannot be written."""
    found = decision.figures(env)
    text = document(found).encode()
    target = Path(file)
    try:
        write_whole(target, text)
    except OSError as error:
        raise MoelineError(f"The report could not be written to {target}: {error.strerror}. Name a file in a folder that you may write to.") from None
    return {"file": str(target), "bytes": len(text), "runs": len(found["runs"])}


def document(found: Mapping[str, Any]) -> str:
    """The page of what ``decision.figures`` found."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections = (
        _section("Cost against accuracy", "cost-vs-accuracy", _about_runs(found), report_figures.scatter(found["cost-vs-accuracy"], found["next"])),
        _section("Forecast against outcome", "forecasts", "Every outcome in its forecast's 95 % interval; a cross lies outside.",
                 report_figures.forecasts(found["forecasts"], found["calibration"])),
        _section("Cost by phase over time", "spend", f"All charges: {usd(found['total_usd'])}.", 
                 report_figures.spend(found["spend"]) + _legend(found["spend"])),
        _section("Spend against budget", "budget", _about_budget(found["budget"]), report_figures.budget(found["budget"]) + _budgets(found["budget"])),
        _section("Wasted dollars", "wasted", _about_wasted(found), _wasted(found["wasted"])),
        _section("Calibration of all past forecasts", "calibration", "Bias and error are shares of the outcome; intervals claim 95 %.",
                 _calibration(found["calibration"])),
        _section("What to try next", "next", _about_next(found["next"]), _next(found["next"]), wide=True),
        _section("Runs", "runs", "The Pareto front, then the newest others. Points gained are over the champion of then, with 95 % intervals.",
                 _runs(found["cost-vs-accuracy"]), wide=True),
    )  # fmt: skip
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(policy)}"><meta name="referrer" content="no-referrer">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>moeline: cost against accuracy</title><style>{STYLE}</style>'
    )
    lede = (
        f"Environment “{found['environment']}”, {len(found['runs'])} model builds, made {found['made_at']}. Costs are resources held x list prices "
        f"({found['currency']}), every attempt included; not an invoice."
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>What a point of accuracy costs</h1><p class="lede">{escape(lede)}</p>'
        f"{_tiles(found)}<main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, name: str, about: str, body: str, *, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f'<section id="{name}" aria-labelledby="h-{name}"{kind}><h2 id="h-{name}">{escape(title)}</h2><p>{escape(about)}</p>{body}</section>\n'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    kind = [' class="n"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{k}>{escape(h)}</th>' for h, k in zip(head, kind, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{k}>{escape(c)}</td>' for c, k in zip(row, kind, strict=True))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _tiles(found: Mapping[str, Any]) -> str:
    scored = [r for r in found["cost-vs-accuracy"] if r["accuracy"] is not None]
    best = max(scored, key=lambda r: r["accuracy"], default=None)
    gained = [r for r in scored if r["usd_per_point"] is not None]
    last = gained[-1] if gained else None
    shown = (
        ("best accuracy", percent(best["accuracy"]) if best else "missing", best["recipe"] if best else ""),
        ("its cost", usd(best["cost_usd"]) if best else "missing", ""),
        ("last gain over a champion", usd(last["usd_per_point"]) + " a point" if last else "none", f"{points(last['gain_points'])} points" if last else ""),
        ("spent in all", usd(found["total_usd"]), f"{usd(found['wasted_usd'])} of it wasted"),
    )
    tiles = "".join(f"<div><span>{escape(label)}</span><b>{escape(value)}</b><span>{escape(detail)}</span></div>" for label, value, detail in shown)
    return f'<div class="tiles">{tiles}</div>'


def _about_runs(found: Mapping[str, Any]) -> str:
    suites = {r["suite"] for r in found["cost-vs-accuracy"] if r["suite"]}
    more = f" {len(suites)} suites are shown, each with a front of its own: their scores cannot be compared." if len(suites) > 1 else ""
    return f"Bars are 95 % intervals, the line is the Pareto front, other runs are grey, ◇ is a forecast.{more}"


def _about_budget(rows: Sequence[Mapping[str, Any]]) -> str:
    own = [r for r in rows if r["recipe"] is None]
    if not own:
        return ""
    limit = "no budget is set ([budgets] of the price sheet)" if own[0]["limit_usd"] is None else f"the budget is {usd(own[0]['limit_usd'])}"
    return f"{own[0]['month']}: {usd(own[-1]['so_far_usd'])} so far, {usd(own[0]['projected_usd'])} at this pace by its end; {limit}."


def _budgets(rows: Sequence[Mapping[str, Any]]) -> str:
    last = {r["recipe"]: r for r in rows if r["recipe"] is not None}
    if not last:
        return ""
    cells = ((name, usd(r["so_far_usd"]), usd(r["projected_usd"]), usd(r["limit_usd"]), r["level"]) for name, r in last.items())
    return _table(("recipe", "spent", "projected", "budget", ""), cells, (1, 2, 3))


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    there = {r["phase"] for r in rows}
    total = {phase: sum(r["usd"] for r in rows if r["phase"] == phase) for phase in there}
    named = [(p, PHASES[p]) for p in PHASES if p in there] + [("other", p) for p in sorted(there - set(PHASES))]
    keys = (
        f'<li data-phase="{escape(kind)}"><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="p-{kind}" width="10" height="10"/></svg>'
        f"{escape(label)} {usd(total[kind] if kind in total else total[label])}</li>"
        for kind, label in named
    )
    return f'<ul class="legend">{"".join(keys)}</ul>' if named else ""


def _about_wasted(found: Mapping[str, Any]) -> str:
    if found["total_usd"] is None:
        return "No charge is recorded yet."
    share = found["wasted_usd"] / found["total_usd"] if found["total_usd"] else 0.0
    return f"{usd(found['wasted_usd'])}, {percent(share)} of all charges, went to attempts that failed or were killed; the dearest:"


def _wasted(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="empty">No attempt failed or was killed.</p>'
    cells = ((r["started"][:10], r["stage"], r["recipe"], r["outcome"], usd(r["usd"]), _short(r["error"] or "")) for r in rows[:MOST_LOST])
    return _table(("day", "stage", "recipe", "", "cost", "error"), cells, (4,))


def _calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return '<p class="empty">No forecast has come out yet.</p>'
    cells = (
        (METRICS.get(m["metric"], m["metric"]), f"{m['inside']}/{m['n']}", _ranged(m, "coverage", "coverage_low", "coverage_high", percent),
         percent(m["bias"]), percent(m["error"]), f"{m['beats_naive']}/{m['compared']}", m["verdict"])
        for m in rows
    )  # fmt: skip
    return _table(("", "inside", "coverage (95 %)", "bias", "error", "beats naive", ""), cells, (1, 2, 3, 4, 5))


def _about_next(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return (
            "No recipe is forecast and untrained. `moeline stage forecast --recipe NAME` forecasts one; `moeline propose champion` makes recipes of failures."
        )
    front = sum(r["on_front"] for r in rows)
    return f"{len(rows)} recipes are forecast and not trained, {front} of them on the predicted Pareto front. Gains are over the champion of now."


def _next(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = (
        (r["recipe"], _ranged(r, "accuracy_forecast", "accuracy_low", "accuracy_high", percent), usd(r["cost_usd"]),
         _ranged(r, "gain_points", "gain_low", "gain_high", points), usd(r["usd_per_point"]) if r["usd_per_point"] is not None else "nothing gained",
         "on the front" if r["on_front"] else "dominated", r["decision"], r["command"] or "")
        for r in rows[:MOST_NEXT]
    )  # fmt: skip
    return _table(("recipe", "accuracy forecast", "whole cost", "points gained", "per point", "", "decision then", "command"), cells, (2, 4))


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
    ordered = sorted(reversed(rows), key=lambda r: not r["on_front"])[:MOST_RUNS]
    cells = (
        (r["run_id"], r["recipe"], f"v{r['model_version']}" if r["model_version"] else "", usd(r["cost_usd"]), usd(r["wasted_usd"]),
         percent(r["accuracy"]) + (f" ± {percent(report_figures.Z95 * r['accuracy_stderr'])}" if r["accuracy_stderr"] is not None else ""),
         "missing" if r["loss"] is None else f"{r['loss']:.3f}", _ranged(r, "gain_points", "gain_low", "gain_high", points),
         "" if r["usd_per_point"] is None else usd(r["usd_per_point"]), "front" if r["on_front"] else "")
        for r in ordered
    )  # fmt: skip
    return _table(("run", "recipe", "model", "cost", "wasted", "accuracy (95 %)", "loss", "points gained", "per point", ""), cells, (3, 4, 6, 8))


def _ranged(row: Mapping[str, Any], value: str, low: str, high: str, form: Callable[[float | None], str]) -> str:
    return "" if row[value] is None else f"{form(row[value])} ({form(row[low])} to {form(row[high])})"


def _short(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:89]}…"
