"""Stage train on a small corpus through a local Ray: its row, its metrics, what a person and MLflow see, and that a retry costs nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import training_parts as parts

from expectations.tables import TABLES
from jobs.budget import Spending
from jobs.contract import BudgetExceeded, MoelineError
from jobs.services import order_file, run_control, training, training_data
from jobs.stages import train
from models import checkpoint
from models.mixture import Mixture, Phase


class Recorder:
    """A tracker that remembers; the second half of its answers fails when ``broken``."""

    run_id = "run-1"

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.params, self.metrics, self.status = broken, {}, [], None

    def log_params(self, params):
        self.params = dict(params)

    def log_metrics(self, metrics, step):
        if self.broken:
            raise ConnectionError("the tracking server is gone")
        self.metrics.append((step, dict(metrics)))

    def finish(self, status="FINISHED"):
        self.status = status


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(tools, tracker, output) of one training."""
    home = tmp_path_factory.mktemp("home")
    tracker = Recorder()
    tools = parts.TrainingTools(home, tracker=tracker)
    output = train.run(parts.small_train(tokens=300 * 8 * parts.SEQ_LEN), {"sequences": parts.sequences(home / "table")}, tools)
    return tools, tracker, output


def test_one_row_names_a_checkpoint_that_verifies(trained):
    tools, _, output = trained
    (row,) = output.tables["checkpoints"].to_pylist()
    assert set(row) == {c.name for c in TABLES["checkpoints"].columns}
    assert row["uri"] == f"checkpoints/{tools.run_key}/step-0000000300"
    assert checkpoint.verify(Path(tools.artifact_dir(row["uri"]))) == row["sha256"]
    assert (row["step"], row["tokens"], row["final"], row["mlflow_run_id"]) == (300, 300 * 8 * parts.SEQ_LEN, True, "run-1")
    assert training.train_config(json.loads(row["config"])) == parts.small_train(tokens=300 * 8 * parts.SEQ_LEN)


def test_the_order_it_read_is_written_beside_its_checkpoint_which_names_it(trained):
    tools, _, output = trained
    folder = Path(tools.artifact_dir(f"checkpoints/{tools.run_key}"))
    about = order_file.read_about(folder / order_file.NAME)
    assert (about["order"], about["steps"], about["batch_sequences"]) == (output.metrics["order"], 300, 8)
    assert checkpoint.read(folder / output.metrics["checkpoint"])[1]["data_position"]["order"] == about["order"]
    assert len(order_file.read(folder / order_file.NAME, 290, 10)) == 80


def test_the_model_beats_the_unigram_model(trained):
    metrics = trained[2].metrics
    assert metrics["unigram_loss"] == pytest.approx(4.13, abs=0.1)  # about ln 62: tokens are nearly uniform
    assert metrics["held_out_loss"] < metrics["unigram_loss"] - 1.0
    assert metrics["epochs"] == pytest.approx(8.0)
    assert metrics["tokens_by_source"] == {"python-code": metrics["tokens"]}
    assert metrics["epochs_by_source"] == {"python-code": 8.0}
    assert metrics["flops"] > 0 < metrics["tokens_per_second"]
    assert 0 < metrics["min_tokens_per_second"] <= metrics["median_tokens_per_second"]
    assert 0 < metrics["mfu"] < 1 < metrics["worst_expert_load"]
    assert metrics["mfu"] * metrics["peak_flops"] == pytest.approx(metrics["flops"] / metrics["wall_seconds_training"], rel=0.2)
    assert 0 < metrics["launch_seconds"] < metrics["wall_seconds"]


def test_a_person_sees_progress_and_mlflow_gets_metrics_while_it_runs(trained):
    tools, tracker, _ = trained
    done = [d for d, _, _ in tools.reported]
    assert done == sorted(done)
    assert done[-1] == 300
    assert "tokens/s" in tools.reported[-1][2]
    steps = [step for step, values in tracker.metrics if "learning_rate" in values]
    assert steps[-1] == 300
    assert tracker.metrics[-1][1]["held_out_loss"] == trained[2].metrics["held_out_loss"]
    shown = next(values for _, values in reversed(tracker.metrics) if "learning_rate" in values)
    assert {
        "loss",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "cost_usd",
        "expert_load_min",
        "expert_load_entropy",
        "router_confidence",
        "peak_memory_gib",
    } <= set(shown)
    assert tracker.params["model.d_model"] == 16
    assert tracker.status == "FINISHED"


def test_a_retry_after_the_end_trains_nothing_and_reports_the_same(trained):
    tools, _, output = trained
    broken = Recorder(broken=True)
    tools.tracker = broken
    again = train.run(parts.small_train(tokens=300 * 8 * parts.SEQ_LEN), {"sequences": parts.sequences(tools.home / "table")}, tools)
    assert again.metrics["launch_seconds"] == 0.0
    assert again.metrics["wall_seconds"] < 5.0
    same = {"sha256", "loss", "held_out_loss", "step"}
    before, after = (o.tables["checkpoints"].to_pylist()[0] for o in (output, again))
    assert {k: before[k] for k in same} == {k: after[k] for k in same}  # and a tracker that fails does not fail the stage


def test_a_training_that_ended_for_its_budget_is_a_row_like_any_other_and_says_why(tmp_path):
    tools = parts.TrainingTools(tmp_path, spending=Spending(limit=3.0, forecast=0.5, earlier=0.25, kept=0.25))
    table, config = parts.sequences(tmp_path / "table"), parts.small_train(tokens=20_000 * 8 * parts.SEQ_LEN)
    data = training_data.write(table, tmp_path / "sequences")
    folder = tools.artifact_dir(f"checkpoints/{tools.run_key}")
    began = time.time()
    training.train_all([training.TrainingRun(str(tmp_path / "few"), data.folder, parts.small_train(tokens=10 * 8 * parts.SEQ_LEN))], threads=1)
    enough = 2 * (time.time() - began)  # for the first steps, however busy the machine is
    allowance = run_control.Allowance(enough, 1.0, time.time(), limit_usd=3.0)
    training.train_all([training.TrainingRun(folder, data.folder, config, allowance=allowance)], threads=1)
    output = train.run(config, {"sequences": table}, tools)  # finds it ended: the budget is what it was
    (row,) = output.tables["checkpoints"].to_pylist()
    assert (output.metrics["ended_early"], output.metrics["steps_planned"], output.metrics["budget_usd"]) == ("budget", 20_000, 3.0)
    assert 0 < row["step"] == output.metrics["steps"] < 20_000
    assert row["tokens"] == row["step"] * 8 * parts.SEQ_LEN and row["held_out_loss"] > 0
    assert checkpoint.verify(Path(tools.artifact_dir(row["uri"]))) == row["sha256"]


def test_nothing_is_launched_when_nothing_is_left_of_the_budget(tmp_path):
    tools = parts.TrainingTools(tmp_path, spending=Spending(limit=1.0, forecast=0.5, earlier=0.4, kept=0.25))
    with pytest.raises(BudgetExceeded, match=r"Nothing is left of the budget of \$1.0000 .* \$0.9000 were spent .* need \$0.2500"):
        train.run(parts.small_train(), {"sequences": parts.sequences(tmp_path / "table")}, tools)


def test_what_cannot_be_trained_is_refused_before_anything_is_launched(tmp_path):
    tools = parts.TrainingTools(tmp_path)
    for workers, among in ((8, 3), (8, 8), (1, 2), (0, 1)):  # of 4 experts
        with pytest.raises(MoelineError, match=f"asks for {workers} workers and deals 4 experts out to {among}"):
            train.run(parts.small_train(workers=workers, expert_parallel=among), {"sequences": None}, tools)
    with pytest.raises(MoelineError, match=r"cannot be trained on these sequences: The mixture names the sources web; the corpus has python-code"):
        mixture = Mixture(phases=(Phase(weights=(("web", 1.0),)),))
        train.run(parts.small_train(mixture=mixture), {"sequences": parts.sequences(tmp_path / "one-source")}, parts.TrainingTools(tmp_path))
    with pytest.raises(MoelineError, match="vocabulary of 64"):
        train.run(parts.small_train(), {"sequences": parts.sequences(tmp_path / "table", vocab=100)}, tools)
