"""The page "Corpus statistics": what became of the documents of every day and source. Its routes and its place in Airflow's navigation.

Change here: routes and what may be asked. Not here: what the numbers are (jobs/statistics.py), how they look (static/corpus.js), who may see
them (cost_vs_accuracy.py, which serves these routes to the signed-in only).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from replies import csv_reply

STATIC = Path(__file__).resolve().parent / "static"
FILES = {"corpus.js": "text/javascript", "corpus_charts.js": "text/javascript", "corpus.css": "text/css"}
VIEW = {"name": "Corpus statistics", "href": "costs/corpus", "destination": "nav", "category": "browse", "url_route": "corpus-statistics"}
ADay = Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$")]
ASource = Annotated[str | None, Query(min_length=1, max_length=300)]
COLUMNS = ("interval", "source", "what", "bucket", "documents", "bytes", "text_bytes", "tokens")

router = APIRouter()


@router.get("/corpus")
def page() -> Response:
    return Response((STATIC / "corpus.html").read_bytes(), media_type="text/html")


@router.get("/api/corpus")
def corpus(first: ADay = None, last: ADay = None, source: ASource = None) -> Response:
    """The funnel by day and source, the breakdowns over all that was asked for, and which days and sources there are."""
    from jobs import statistics
    from jobs.environment import Environment

    return Response(json.dumps(_asked(statistics.overview, Environment.load(), first, last, source), allow_nan=False), media_type="application/json")


@router.get("/api/corpus.csv")
def corpus_csv(first: ADay = None, last: ADay = None, source: ASource = None) -> Response:
    """The same rows as they are in the table."""
    from jobs import statistics
    from jobs.environment import Environment

    return csv_reply(_asked(statistics.read, Environment.load(), first, last, source), COLUMNS, "corpus")


def _asked(read: Any, *question: Any) -> Any:
    from jobs.contract import MoelineError

    try:
        return read(*question)
    except MoelineError as problem:
        raise HTTPException(404, str(problem)) from None
