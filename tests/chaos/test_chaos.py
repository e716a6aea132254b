"""make chaos SEED=n[,m,...] [SEEDS=k]: the whole job with something going wrong at random moments; nothing may be lost, paid unseen or left behind.

Each seed names one trial (what happens, when) for good. One seed runs with every `make test`, on one day. CHAOS_OUT: a file to which every outcome is
appended as a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import disturbances
import pytest
import trial

pytestmark = pytest.mark.integration

NAMED, NUMBER = [int(seed) for seed in os.environ.get("SEED", "22").split(",")], int(os.environ.get("SEEDS", "1"))
SEEDS = [*NAMED, *range(NAMED[-1] + 1, NAMED[-1] + NUMBER)]
MEGABYTES = 3000


@dataclass
class Ground:
    """Where trials happen: ``home`` on a disk of its own where that is allowed; the undisturbed job's rows and seconds."""

    home: Path
    model: Path
    work: Path
    can_mount: bool
    seconds: float = 0.0
    expected: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="moeline-c-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)  # PostgreSQL as root steps down to another user
        work = Path(os.environ.get("CHAOS_LOGS") or root / "work")
        work.mkdir(exist_ok=True, parents=True)
        with disturbances.own_disk(root / "h", MEGABYTES) as can_mount:
            made = Ground(root / "h", root / "model", work, can_mount)
            trial.template(made.home)
            made.model.mkdir()
            subprocess.run(["cp", "-a", f"{made.home}/.", str(made.model)], check=True)
            began = time.monotonic()
            calm = trial.trial(0, made.home, made.model, work, [], 0.0, None)
            print(f"\nundisturbed: {calm.seconds:.0f} s, in all {time.monotonic() - began:.0f} s; {calm.problems or 'as it must be'}", flush=True)
            assert not calm.problems and calm.retries == 0
            made.seconds, made.expected = calm.seconds, trial.rows_of(trial.environment(made.home))
            yield made
    os.environ.pop("MOELINE_ENV", None)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_paid_unseen_or_left_behind(ground: Ground, seed: int) -> None:
    planned = disturbances.draw(seed, can_mount=ground.can_mount)
    found = trial.trial(seed, ground.home, ground.model, ground.work, planned, ground.seconds, ground.expected)
    line = json.dumps(asdict(found), sort_keys=True)
    print(f"\n{line}", flush=True)
    if os.environ.get("CHAOS_OUT"):
        with open(os.environ["CHAOS_OUT"], "a") as out:
            out.write(line + "\n")
    assert not found.problems, found
