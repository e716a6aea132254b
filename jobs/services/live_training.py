"""The read side of the page "Trainings": which there are, and what one of them has written since the page last asked.

A run's folder is read directly, so a training is shown while it runs and after it was killed. Nothing is kept between two questions: the
page says how far it has read. Change here: what that page gets. Not here: routes (infra/dashboards), drawing (static/training.js),
what a run records (training.py).
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import results, telemetry
from jobs.services.training import ERROR, METRICS, RESULT, parsed

COLUMNS = (
    "step", "tokens", "loss", "tokens_per_second", "mfu", "cost_usd", "grad_norm", "learning_rate", "router_confidence", "expert_load_max_over_mean", "skipped",
)  # fmt: skip
MAX_BYTES = 2 << 20  # of metrics read per question: a long run arrives in several
QUIET_SECONDS = 60.0  # a run that wrote nothing for so long, and did not end, is taken to be stopped
_KEY = re.compile(r"^[A-Za-z0-9-]{1,64}$")


def trainings(env: Environment) -> list[dict[str, Any]]:
    """Every training that has taken a step here, the newest first: run_key, recipe, state, steps, when it last wrote."""
    recorded = {r.run_key: r for r in results.of_stage(env, "train")}
    found = []
    for file in (env.artifacts / "checkpoints").glob(f"*/{METRICS}"):
        about, ended = telemetry.read_about(file.parent), recorded.get(file.parent.name)
        found.append({
            "run_key": file.parent.name, "recipe": ended.recipe if ended else about.get("recipe", ""), "state": _state(file.parent),
            "written_at": file.stat().st_mtime,
        })  # fmt: skip
    return sorted(found, key=lambda t: -t["written_at"])


def _state(folder: Path) -> str:
    """running | finished | ended early | failed | stopped"""
    if (folder / RESULT).is_file():
        return "ended early" if json.loads((folder / RESULT).read_text()).get("ended_early") else "finished"
    if (folder / ERROR).is_file():
        return "failed"
    return "running" if time.time() - (folder / METRICS).stat().st_mtime < QUIET_SECONDS else "stopped"


def read(env: Environment, run_key: str, *, file: str = "", offset: int = 0) -> dict[str, Any]:
    """What a training wrote from ``offset`` on in the metrics file ``file`` (both from the answer before; a resumed run has a new one).

    ``columns``: numbers by step, missing ones None. ``heat``: (step, tokens per expert, layers by experts). ``more``: ask again at once.
    Raises MoelineError for an unknown run.
    """
    folder = env.artifacts / "checkpoints" / run_key
    if not _KEY.match(run_key) or not (folder / METRICS).is_file():
        raise MoelineError(f"No training with run key {run_key!r} is here. Reload the page.")
    with (folder / METRICS).open("rb") as lines:
        now = os.fstat(lines.fileno())
        name = f"{now.st_dev}-{now.st_ino}"
        start = offset if name == file and offset <= now.st_size else 0
        lines.seek(start)
        text = lines.read(MAX_BYTES)
    whole = text[: text.rfind(b"\n") + 1]
    found = parsed(whole.decode(errors="replace"))
    steps = [line for line in found if line.get("event") == "step"]
    answer = {
        "run_key": run_key, "state": _state(folder), "file": name, "offset": start + len(whole), "begins": start == 0,
        "more": start + len(whole) < now.st_size and bool(whole), "columns": {c: [_number(line.get(c)) for line in steps] for c in COLUMNS},
        "heat": [[line["step"], line["tokens_per_expert"]] for line in steps if line.get("tokens_per_expert")], "events": _events(found),
    }  # fmt: skip
    if start == 0:
        answer |= {"about": telemetry.read_about(folder), "forecast": _json(folder / telemetry.FORECAST)}
    if answer["state"] in ("finished", "ended early"):
        result = json.loads((folder / RESULT).read_text())
        answer["result"] = {name: _number(result.get(name)) for name in ("loss", "held_out_loss", "steps")} | {"ended_early": result.get("ended_early")}
    return answer


def _events(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a person should see besides numbers: restarts, checkpoints that failed, batches skipped."""
    found = []
    for line in lines:
        if line.get("event") == "started":
            found.append({"step": line["step"], "what": "resumed" if line["step"] else "started", "steps": line.get("steps")})
        elif line.get("event") == "checkpoint" and line.get("error"):
            found.append({"step": line["step"], "what": f"checkpoint failed: {line['error']}"})
        elif line.get("event") == "step" and line.get("skipped"):
            found.append({"step": line["step"], "what": f"batch skipped: {line.get('skipped_because') or 'not finite'}"})
    return found


def _number(value: Any) -> Any:
    """JSON has no NaN; a number that is none is missing."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None
