"""The pages "Cost vs accuracy" and "Scores over checkpoints" in Airflow: nav entries, a tab of every DAG run, the small API behind them.

Change here: routes, headers, where the page shows up. Not here: what the numbers are (jobs/services/report.py, trend.py, jobs/proposals.py), how they
look (static/). Airflow loads this file as a plugin ([core] plugins_folder). Every route needs a signed-in user; nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import comparison_page
import corpus_page
import decision_page
import training_page
from airflow.api_fastapi.core_api.security import get_user  # internal to Airflow, so used in this one place
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from replies import RunKey, csv_reply, json_reply

STATIC = Path(__file__).resolve().parent / "static"
FILES = {
    **dict.fromkeys(("page.js", "charts.js", "dom.js", "trend.js", "proposals.js"), "text/javascript"), **dict.fromkeys(("page.css", "trend.css"), "text/css"),
    "icon.svg": "image/svg+xml",
    **decision_page.FILES, **comparison_page.FILES, **corpus_page.FILES, **training_page.FILES,
}  # fmt: skip
Task = Annotated[str, Query(min_length=1, max_length=300)]
AVerdict = Annotated[str | None, Query(pattern="^(proper|lucky|constant_answer|contaminated|format_failure|near_miss|wrong)$")]
ICON = "/costs/static/icon.svg"
HEADERS = {
    # Nothing but this page's own files may load or run, and only Airflow may frame it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

app = FastAPI(title="Cost vs accuracy", dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None)
app.include_router(decision_page.router)
app.include_router(comparison_page.router)
app.include_router(corpus_page.router)
app.include_router(training_page.router)


@app.middleware("http")
async def add_headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers.update(HEADERS)
    return response


@app.get("/page")
def page() -> Response:
    return Response((STATIC / "page.html").read_bytes(), media_type="text/html")


@app.get("/static/{name}")
def static_file(name: str) -> Response:
    if name not in FILES:
        raise HTTPException(404)
    return Response((STATIC / name).read_bytes(), media_type=FILES[name])


@app.get("/api/dag-run")
def dag_run(run: Annotated[str, Query(max_length=500)]) -> Response:
    """Charges and data-quality checks of one DAG run, also of one that built no model."""
    from jobs.environment import Environment
    from jobs.services import report

    return json_reply(report.of_dag_run(Environment.load(), run))


@app.get("/api/proposals")
def proposed(run_key: RunKey) -> Response:
    """Failure groups of the run with this training, with a priced proposal each; ``problem`` says in a sentence why there is none."""
    from jobs import proposals
    from jobs.contract import MoelineError
    from jobs.environment import Environment

    try:
        return json_reply(proposals.describe(Environment.load(), run_key))
    except MoelineError as problem:
        return json_reply({"problem": str(problem)})


@app.get("/trend")
def trend_page() -> Response:
    return Response((STATIC / "trend.html").read_bytes(), media_type="text/html")


@app.get("/api/trend")
def trend_points() -> Response:
    """Scores of every evaluated checkpoint by task and category."""
    from jobs.environment import Environment
    from jobs.services import trend

    return json_reply({"points": trend.points(Environment.load()), "verdicts": trend.VERDICTS})


@app.get("/api/trend.csv")
def trend_csv() -> Response:
    from jobs.environment import Environment
    from jobs.services import trend

    return csv_reply(trend.points(Environment.load()), ("recipe", "model", "finished_at", "tokens", "loss", *trend.POINT), "scores")


@app.get("/api/items")
def trend_items(
    run_key: RunKey, benchmark: Task, verdict: AVerdict = None, offset: Annotated[int, Query(ge=0, le=10**7)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 25,
) -> Response:  # fmt: skip
    """One page of a task's answers with prompt, choices, log-probabilities, verdict and evidence."""
    return json_reply(_items(run_key, benchmark, verdict, offset, limit))


@app.get("/api/items.csv")
def trend_items_csv(run_key: RunKey, benchmark: Task, verdict: AVerdict = None) -> Response:
    rows = _items(run_key, benchmark, verdict, 0, 10**6)["items"]
    columns = ("item_id", "subset", "verdict", "correct", "margin", "lead", "key_suspect", "evidence", "output", "choices", "mean_logprobs", "gold", "prompt")
    return csv_reply(rows, columns, "items")


def _items(run_key: str, benchmark: str, verdict: str | None, offset: int, limit: int) -> dict[str, Any]:
    from jobs.contract import MoelineError
    from jobs.environment import Environment
    from jobs.services import trend

    try:
        return trend.items(Environment.load(), run_key, benchmark, verdict=verdict, offset=offset, limit=limit)
    except MoelineError as problem:
        raise HTTPException(404, str(problem)) from None


class CostVsAccuracyPlugin(AirflowPlugin):
    """Registers the app and where Airflow's interface shows it."""

    name = "cost_vs_accuracy"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = [{"app": app, "url_prefix": "/costs", "name": "Cost vs accuracy"}]
    external_views: ClassVar[list[dict[str, Any]]] = [
        {"name": app.title, "href": "costs/page", "destination": "nav", "category": "browse", "url_route": "cost-vs-accuracy", "icon": ICON},
        {
            "name": "Scores over checkpoints",
            "href": "costs/trend",
            "destination": "nav",
            "category": "browse",
            "url_route": "scores-over-checkpoints",
            "icon": ICON,
        },
        {**corpus_page.VIEW, "icon": ICON},
        {**training_page.VIEW, "icon": ICON},
        {"name": app.title, "href": "costs/page?dag={DAG_ID}&run={RUN_ID}", "destination": "dag_run", "url_route": "cost-vs-accuracy-run", "icon": ICON},
    ]
