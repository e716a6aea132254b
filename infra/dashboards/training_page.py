"""The page "Trainings": loss inside its forecast band, expert load, speed and cost, while a training runs. Its routes and its place in Airflow.

Change here: routes and what may be asked. Not here: what is read (jobs/services/live_training.py), how it looks (static/training.js), who may
see it (cost_vs_accuracy.py, which serves these routes to the signed-in only).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from replies import RunKey

STATIC = Path(__file__).resolve().parent / "static"
FILES = {"training.js": "text/javascript", "training_charts.js": "text/javascript", "training.css": "text/css"}
VIEW = {"name": "Trainings", "href": "costs/training", "destination": "nav", "category": "browse", "url_route": "trainings"}
AFile = Annotated[str, Query(pattern=r"^[0-9-]{0,64}$")]

router = APIRouter()


@router.get("/training")
def page() -> Response:
    return Response((STATIC / "training.html").read_bytes(), media_type="text/html")


@router.get("/api/trainings")
def trainings() -> Response:
    """Every training there is, the newest first."""
    from jobs.environment import Environment
    from jobs.services import live_training

    return Response(json.dumps({"trainings": live_training.trainings(Environment.load())}, allow_nan=False), media_type="application/json")


@router.get("/api/training")
def training(run_key: RunKey, file: AFile = "", offset: Annotated[int, Query(ge=0, le=10**12)] = 0) -> Response:
    """What one training has written since the page last asked."""
    from jobs.contract import MoelineError
    from jobs.environment import Environment
    from jobs.services import live_training

    try:
        return Response(json.dumps(live_training.read(Environment.load(), run_key, file=file, offset=offset), allow_nan=False), media_type="application/json")
    except MoelineError as problem:
        raise HTTPException(404, str(problem)) from None
