"""moeline order: which sequences a training reads, from any step. Change here: what is shown. Not here: the file (jobs/services/order_file.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import order_file

MIN_PREFIX = 6


def order(env: Environment, run: str, from_step: int, steps: int) -> dict[str, Any]:
    """What ``moeline order --json`` prints. ``run``: the run key of a training, or its beginning. Raises MoelineError when there is no one such run."""
    known = sorted(file.parent for file in (env.artifacts / "checkpoints").glob(f"*/{order_file.NAME}"))
    found = [folder for folder in known if folder.name == run or (len(run) >= MIN_PREFIX and folder.name.startswith(run))]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in known[:5]) or "none"
        raise MoelineError(
            f"{run!r} means {len(found)} of {len(known)} trainings with a written order ({names}). Give one run key ({MIN_PREFIX} letters or more)."
        )
    file = found[0] / order_file.NAME
    return {"run_key": found[0].name, **order_file.read_about(file), "reads": order_file.read(file, from_step, steps)}


def render(found: Mapping[str, Any]) -> str:
    """One line per sequence read."""
    head = (
        f"training {found['run_key']}: {found['sequences']}, seed {found['seed']}, {found['steps']} steps of {found['batch_sequences']}, order {found['order']}"
    )
    return "\n".join([head, *(f"step {row['step']}  {row['interval']}  sequence {row['sequence_id']}" for row in found["reads"])]) + "\n"
