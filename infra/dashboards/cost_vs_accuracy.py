"""The page "Cost vs accuracy" in Airflow: a nav entry, a tab of every DAG run, and the small JSON API behind them.

Change here: routes, headers, where the page shows up. Not here: what the numbers are (jobs/services/report.py), how they look
(static/). Airflow loads this file as a plugin ([core] plugins_folder). Every route needs a signed-in user; nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from airflow.api_fastapi.core_api.security import get_user  # internal to Airflow, so used in this one place
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response

STATIC = Path(__file__).resolve().parent / "static"
FILES = {"page.js": "text/javascript", "charts.js": "text/javascript", "dom.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
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


@app.get("/api/runs")
def runs() -> Response:
    """Every model build with its cost, scores, forecast and checks (the rows of ``moeline report --json`` and their detail)."""
    from jobs.environment import Environment
    from jobs.services import report

    env = Environment.load()
    shown = {"environment": env.name, "currency": env.prices.currency, "mlflow_url": env.platform.get("mlflow_uri"), "runs": report.runs(env)}
    return _json(shown)


@app.get("/api/dag-run")
def dag_run(run: Annotated[str, Query(max_length=500)]) -> Response:
    """Charges and data-quality checks of one DAG run, also of one that built no model."""
    from jobs.environment import Environment
    from jobs.services import report

    return _json(report.of_dag_run(Environment.load(), run))


def _json(value: Any) -> Response:
    return Response(json.dumps(_finite(value), default=str, allow_nan=False), media_type="application/json")


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither, and a missing number must look missing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_finite(item) for item in value]
    return value


class CostVsAccuracyPlugin(AirflowPlugin):
    """Registers the app and where Airflow's interface shows it."""

    name = "cost_vs_accuracy"
    fastapi_apps: ClassVar[list[dict[str, Any]]] = [{"app": app, "url_prefix": "/costs", "name": "Cost vs accuracy"}]
    external_views: ClassVar[list[dict[str, Any]]] = [
        {"name": app.title, "href": "costs/page", "destination": "nav", "category": "browse", "url_route": "cost-vs-accuracy", "icon": ICON},
        {"name": app.title, "href": "costs/page?dag={DAG_ID}&run={RUN_ID}", "destination": "dag_run", "url_route": "cost-vs-accuracy-run", "icon": ICON},
    ]
