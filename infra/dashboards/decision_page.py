"""The numbers behind the page "Cost vs accuracy": every build and figure in one answer, one build in full, every figure as CSV.

Change here: routes, what is asked, what is kept between requests. Not here: what the figures hold (jobs/decision.py), how they look (static/decision.js),
who may see them (cost_vs_accuracy.py, which serves these routes to the signed-in only).

With thousands of builds reading the tables takes seconds, so the answer is kept in this process until a table, a recorded result or the price
sheet changes, or the hour (projections of a budget move with it); and then only files that are new are read (jobs/services/kept.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from replies import RunKey, as_json, csv_reply, json_reply

FILES = {"decision.js": "text/javascript", "decision_charts.js": "text/javascript", "filters.js": "text/javascript"}
RUN_COLUMNS = (
    "run_id", "key", "recipe", "suite", "status", "finished_at", "model_name", "model_version", "aliases", "params_total", "params_active", "tokens",
    "cost_usd", "wasted_usd", "cost_forecast_usd", "wall_seconds", "loss", "loss_forecast", "accuracy", "accuracy_stderr", "accuracy_forecast",
    "checks_passed", "checks_failed", "cost_by_stage", "wasted_by_stage", "run_keys", "champion_before",
    "gain_points", "gain_low", "gain_high", "usd_per_point",
)  # fmt: skip
FIGURES = ("spend", "wasted", "budget", "calibration", "next", "published")
AFigure = Annotated[str, Query(pattern="^(cost-vs-accuracy|forecasts|calibration|spend|wasted|budget|next|published)$")]
ADay = Annotated[str | None, Query(pattern=r"^\d{4}-\d\d-\d\d$")]
AName = Annotated[str | None, Query(max_length=300)]
_DAY = ("day", "finished_at", "started")  # which column of a figure its date filter asks, the first there is

router = APIRouter()
_kept: dict[str, Any] = {}
_lock = threading.Lock()  # the first of several requests reads, the others wait for it


@router.get("/api/runs")
def runs() -> Response:
    """Every model build and every figure; rows as lists under their columns' names, as there may be thousands."""
    return Response(_read()["body"], media_type="application/json")


@router.get("/api/run")
def run(key: RunKey) -> Response:
    """One build in full: its checks, scores, gates and forecast beside what became of it."""
    from jobs.services import report

    found = report.one(_read()["records"], key)
    if found is None:
        raise HTTPException(404, f"No build is called {key}.")
    return json_reply(found)


@router.get("/api/figure.csv")
def figure(name: AFigure, recipe: AName = None, suite: AName = None, first: ADay = None, last: ADay = None) -> Response:
    """A figure's rows, filtered as on the page. A filter on what a figure does not have leaves it whole."""
    from jobs import decision

    columns = decision.COLUMNS[name]
    rows = [r for r in _read()["figures"][name] if _matches(r, columns, recipe, suite, first, last)]
    return csv_reply(rows, columns, name)


def _matches(row: Mapping[str, Any], columns: Sequence[str], recipe: str | None, suite: str | None, first: str | None, last: str | None) -> bool:
    day = next((str(row[c])[:10] for c in _DAY if c in columns), None)
    return (
        (recipe is None or "recipe" not in columns or row["recipe"] == recipe) and (suite is None or "suite" not in columns or row["suite"] == suite)
        and (first is None or day is None or day >= first) and (last is None or day is None or day <= last)
    )  # fmt: skip


def _read() -> dict[str, Any]:
    """What is kept, read again when something changed."""
    from jobs import decision
    from jobs.environment import Environment
    from jobs.services import kept, report

    env = Environment.load()
    tables, mlflow = report.state(env), env.platform.get("mlflow_uri")
    state = None if tables is None else (tables, mlflow)
    with _lock:
        if state is None or _kept.get("state") != state:
            records = report.Records(env, _kept.setdefault("files", kept.Kept()))
            found = decision.figures(env, records=records)
            answer = {
                **{name: found[name] for name in ("environment", "currency", "made_at", "total_usd", "wasted_usd")},
                "mlflow_url": mlflow, "runs": _columns(found["runs"], RUN_COLUMNS),
                **{name: _columns(found[name], decision.COLUMNS[name]) for name in FIGURES},
            }  # fmt: skip
            _kept.update(state=state, body=as_json(answer), figures=found, records=records)
        return dict(_kept)


def read() -> tuple[Any, list[dict[str, Any]]]:
    """The records (services/report.py) and the builds made of them that this page shows now."""
    kept = _read()
    return kept["records"], kept["figures"]["runs"]


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    return {"columns": names, "rows": [[row[name] for name in names] for row in rows]}
