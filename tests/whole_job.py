"""The whole job, once per test session, through the real Airflow of the shared platform: `moeline run --recipe smoke` on a few megabytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from running_platform import stage_tries

from jobs.environment import Environment

RECIPE = "smoke"
BYTES = 4_000_000


@dataclass
class WholeJob:
    """``outcome`` is what the command returns with --json, ``said`` the lines it printed, ``tries`` every try Airflow made of its tasks.

    Other tests go on using this Airflow and these tables: what they add is theirs.
    """

    env: Environment
    days: list[str]
    outcome: dict[str, Any]
    said: list[str] = field(default_factory=list)
    tries: list[tuple[str, str, str, int]] = field(default_factory=list)

    @property
    def build_run_id(self) -> str:
        return next(run["run_id"] for run in self.outcome["runs"] if run["dag_id"] == "build_model")


@pytest.fixture(scope="session")
def whole_job(platform: Environment) -> WholeJob:
    """The finished job: two data days prepared, one model built and registered."""
    from jobs import launch, sample_data

    days = launch.sample_days(platform, 2)
    sample_data.write(platform.landing, days, target_bytes=BYTES)
    said: list[str] = []
    outcome = launch.run(platform, RECIPE, 2, echo=said.append)
    return WholeJob(platform, days, outcome, said, _tries(platform, outcome))


def _tries(env: Environment, outcome: dict[str, Any]) -> list[tuple[str, str, str, int]]:
    """(dag, run, task, try) of every stage."""
    return sorted(key for key, _ in stage_tries(env, [(run["dag_id"], run["run_id"]) for run in outcome["runs"]]))
