"""Two runs side by side, and the card of a registered version: what the page "Cost vs accuracy" asks for when a person does.

Change here: these routes. Not here: what is compared (jobs/run_comparison.py), what a card says (jobs/model_card.py), how it looks (static/comparison.js),
who may see it (cost_vs_accuracy.py, which serves these routes to the signed-in only).
"""

from __future__ import annotations

from typing import Annotated, Any

import decision_page
from fastapi import APIRouter, HTTPException, Query, Response
from replies import RunKey, csv_reply, json_reply

FILES = {"comparison.js": "text/javascript"}
AName = Annotated[str, Query(min_length=1, max_length=200)]
AVersion = Annotated[str, Query(pattern=r"^[0-9]{1,9}$")]

router = APIRouter()


@router.get("/api/compare")
def compared(a: RunKey, b: RunKey) -> Response:
    """What differs between two builds, by the run keys of their trainings: settings, days, paired scores, costs."""
    return json_reply(_compared(a, b))


@router.get("/api/compare.csv")
def compared_csv(a: RunKey, b: RunKey) -> Response:
    from jobs import run_comparison

    return csv_reply(run_comparison.rows(_compared(a, b)), run_comparison.COLUMNS, "comparison")


@router.get("/api/card")
def card(name: AName, version: AVersion) -> Response:
    """The model card of a registered version as it is now, as Markdown that the browser shows as plain text."""
    from jobs import model_card, model_card_text
    from jobs.contract import MoelineError
    from jobs.environment import Environment

    try:
        text = model_card_text.render(model_card.of_version(Environment.load(), name, version))
    except MoelineError as problem:
        raise HTTPException(404, str(problem)) from None
    return Response(text, media_type="text/plain; charset=utf-8")


def _compared(a: str, b: str) -> dict[str, Any]:
    from jobs import run_comparison
    from jobs.environment import Environment

    records, runs = decision_page.read()
    found = [next((run for run in runs if run["key"] == key), None) for key in (a, b)]
    for key, run in zip((a, b), found, strict=True):
        if run is None:
            raise HTTPException(404, f"No build is called {key}.")
    return run_comparison.of_runs(Environment.load(), records, *found)
