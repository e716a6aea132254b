"""How the report joins recorded results into builds."""

from __future__ import annotations

import pytest

from jobs.contract import StageResult
from jobs.services import report, results


def record(env, stage: str, number: int, finished_at: str, *, reads: dict[str, str], writes: str, wall_seconds: float = 10.0) -> None:
    results.record(env, StageResult(
        stage=stage, run_key=f"{stage}-{number}", recipe="tiny", interval=None, inputs=reads, outputs={writes: f"{writes}@{number}"}, metrics={},
        cost_usd=0.0, wall_seconds=wall_seconds, finished_at=finished_at,
    ))  # fmt: skip


@pytest.fixture
def trained(env):
    """A forecast, the training it decided on, and a later forecast under another budget on the same sequences."""
    record(env, "forecast", 1, "2026-11-01T10:00:00Z", reads={"sequences": "sequences@1"}, writes="forecasts")
    record(env, "train", 1, "2026-11-01T10:05:00Z", reads={"sequences": "sequences@1"}, writes="checkpoints", wall_seconds=299.5)
    record(env, "forecast", 2, "2026-11-01T11:00:00Z", reads={"sequences": "sequences@1"}, writes="forecasts")
    return env


def test_a_build_is_shown_beside_the_forecast_made_before_its_training(trained):
    builds = {run["run_keys"].get("train"): run["run_keys"] for run in report.runs(trained)}
    assert builds["train-1"]["forecast"] == "forecast-1"


def test_a_forecast_made_after_the_training_is_a_run_of_its_own(trained):
    assert [run["run_keys"] for run in report.runs(trained)][-1] == {"forecast": "forecast-2"}


def test_a_training_without_an_earlier_forecast_has_none(env):
    record(env, "train", 1, "2026-11-01T10:05:00Z", reads={"sequences": "sequences@1"}, writes="checkpoints", wall_seconds=60.0)
    record(env, "forecast", 1, "2026-11-01T10:04:30Z", reads={"sequences": "sequences@1"}, writes="forecasts")
    assert {tuple(run["run_keys"].values()) for run in report.runs(env)} == {("train-1",), ("forecast-1",)}
