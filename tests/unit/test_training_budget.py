"""A money budget ends a training with a usable model and names why; with a larger one it goes on as if it had never ended."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import training_parts as parts

from jobs.services import training, training_data
from jobs.services.run_control import Allowance
from jobs.services.training import TrainingRun
from models import checkpoint

STEPS = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return training_data.write(parts.sequences(folder), folder / "files")


def allowance(seconds: float) -> Allowance:
    """At a dollar per second."""
    return Allowance(usd=seconds, usd_per_second=1.0, since=time.time(), limit_usd=seconds)


def test_it_ends_at_the_last_affordable_step_and_goes_on_exactly_with_more(data, tmp_path):
    config = parts.small_train(tokens=STEPS * 8 * parts.SEQ_LEN)
    whole = TrainingRun(str(tmp_path / "whole"), data.folder, config)
    training.train_all([whole], threads=1)
    expected = training.result_of(whole.folder)
    assert "ended_early" not in expected

    run, early, seconds = TrainingRun(str(tmp_path / "run"), data.folder, config), {"steps": 0}, max(1.5, expected["seconds"] / 3)
    while not early["steps"]:  # on a busy machine the first seconds may not suffice for a step
        training.reopen(run.folder, seconds)
        run = replace(run, allowance=allowance(seconds))
        assert training.train_all([TrainingRun.from_json(run.to_json())], threads=1)
        ended_at, early, seconds = time.time(), training.result_of(run.folder), 1.5 * seconds
    slowest = max(line["seconds"] for line in training.read_metrics(tmp_path / "run" / training.METRICS) if line["event"] == "step")
    assert ended_at - run.allowance.since <= run.allowance.usd + slowest + 1.0  # the last second: import and hash, not trained
    assert early["ended_early"] == "budget"
    assert 0 < early["steps"] < STEPS
    assert early["held_out_loss"] != expected["held_out_loss"]  # of an earlier model; near the end it may by chance be the better one
    ended = tmp_path / "run" / early["checkpoint"]
    assert checkpoint.verify(ended) == early["sha256"]

    assert not training.reopen(run.folder, run.allowance.limit_usd), "the same budget does not open it again"
    assert training.train_all([run], threads=1)
    assert training.result_of(run.folder) == early
    assert training.reopen(run.folder, 1e6)
    training.train_all([replace(run, allowance=allowance(1e6))], threads=1)
    found = training.result_of(run.folder)
    assert found["resumed_from_step"] == early["steps"]
    assert {k: found[k] for k in ("sha256", "held_out_loss", "loss", "steps")} == {k: expected[k] for k in ("sha256", "held_out_loss", "loss", "steps")}
    assert checkpoint.verify(ended) == early["sha256"], "a table names the checkpoint it ended with, so it stays"


def test_without_money_for_one_step_there_is_no_model_and_later_the_run_starts(data, tmp_path):
    run = TrainingRun(str(tmp_path), data.folder, parts.small_train(), allowance=allowance(0.0))
    training.train_all([run], threads=1)
    assert training.result_of(tmp_path) == {"ended_early": "budget", "limit_usd": 0.0, "steps": 0}
    assert training.reopen(tmp_path, 1.0)
    training.train_all([replace(run, allowance=None)], threads=1)
    assert training.result_of(tmp_path)["steps"] == 40
