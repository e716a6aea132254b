"""What is derived from a training's steps: shares of the machine, money, the run in a few figures, the curve that was forecast."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import training_parts as parts

from jobs.environment import Environment
from jobs.price_sheet import InstanceType, Resources
from jobs.services import telemetry, training, training_data
from jobs.services.run_control import Allowance
from jobs.services.training import TrainingRun
from models.scaling import LossLaw


def step(number: int, **changes) -> dict:
    line = {
        "event": "step", "step": number, "seconds": 0.5, "tokens_per_second": 100.0, "expert_load_max_over_mean": 1.5, "skipped": False, "loss": 3.0,
        "skipped_because": "", "mfu": 0.25, "expert_load_entropy": [0.9, 0.8], "starved_experts": [0, 1], "peak_memory_bytes": 5, "tokens": number * 100,
    }  # fmt: skip
    return line | changes


def test_steps_that_warm_up_count_for_no_speed_and_the_worst_is_named():
    lines = [
        {"event": "started", "step": 0, "peak_flops": 7.0}, step(1, tokens_per_second=1.0, mfu=0.001), step(2),
        step(3, tokens_per_second=60.0, seconds=1.5, mfu=0.05),
        {"event": "checkpoint", "step": 3, "seconds": 1.0, "stalled_seconds": 0.03}, {"event": "started", "step": 3, "peak_flops": 8.0},
        step(4, tokens_per_second=2.0), step(5, expert_load_max_over_mean=3.5, expert_load_entropy=[0.5, 1.0], starved_experts=[2, 2], skipped_because="spike"),
    ]  # fmt: skip
    found = telemetry.summary(lines)
    assert (found["min_tokens_per_second"], found["median_tokens_per_second"]) == (60.0, 100.0)
    assert found["mfu"] == pytest.approx((0.25 * 0.5 + 0.05 * 1.5 + 0.25 * 0.5) / 2.5)
    assert (found["worst_expert_load"], found["worst_expert_load_entropy"], found["most_starved_experts"], found["spikes"]) == (3.5, 0.5, 4, 1)
    assert found["peak_flops"] == 8.0
    assert found["stalled_share"] == pytest.approx(0.03 / 3.5)


def test_a_run_whose_steps_report_less_has_fewer_figures():
    old = [{k: v for k, v in step(n).items() if k in ("event", "step", "seconds", "tokens_per_second", "expert_load_max_over_mean")} for n in (1, 2)]
    assert set(telemetry.summary(old)) == {"min_tokens_per_second", "median_tokens_per_second", "worst_expert_load", "peak_flops", "spikes", "stalled_share"}


def test_a_tracker_gets_plain_numbers_of_the_worst_layer():
    found = telemetry.scalars(step(3, expert_load_min=[0.5, 0.25], expert_load_max=[1.5, 2.5], tokens_per_expert=[[1, 2]], peak_memory_bytes=2**31, mfu=None))
    assert (found["expert_load_min"], found["expert_load_max"], found["expert_load_entropy"], found["starved_experts"]) == (0.25, 2.5, 0.8, 1)
    assert found["peak_memory_gib"] == 2.0
    assert "mfu" not in found and all(isinstance(value, (int, float)) for value in found.values())


def test_the_peak_of_a_machine_type_is_that_of_the_share_held(env: Environment):
    machine = InstanceType("h200-8", 192, 2048, 8, "2026-01-01", "a test", on_demand=30.0, peak_tflops=7915.0)
    env = replace(env, prices=replace(env.prices, instances=(machine,)))
    assert telemetry.sheet_peak(env, Resources(24, 256, 1, "h200-8")) == pytest.approx(7915e12 / 8)
    assert telemetry.sheet_peak(env, Resources(2, 4)) is None


def test_the_peak_measured_here_is_that_of_a_matrix_product():
    assert 1e9 < telemetry.peak_here("fp32") < 1e14


LAW = LossLaw("hoffmann", E=1.5, A=400.0, B=900.0, alpha=0.34, beta=0.28)


def forecast_row(**changes) -> dict:
    law = json.dumps({"chosen": "hoffmann", "laws": {"hoffmann": asdict(LAW)}})
    return {"metric": "loss", "predicted": 4.0, "low": 3.6, "high": 4.8, "law": law} | changes


def test_the_curve_falls_by_the_law_and_ends_at_the_forecast():
    config = parts.small_train(tokens=1000 * 8 * parts.SEQ_LEN)
    curve = telemetry.forecast_curve([forecast_row(metric="accuracy"), forecast_row()], config)
    end, params = config.steps * config.tokens_per_step, config.model.flops_per_token / 6
    assert curve["points"][-1] == pytest.approx((end, 4.0, 3.6, 4.8))
    losses = [loss for _, loss, _, _ in curve["points"]]
    assert losses == sorted(losses, reverse=True)
    first = curve["points"][0]
    assert first[1] == pytest.approx(4.0 * LAW.predict(params, first[0]) / LAW.predict(params, end))
    assert telemetry.band_at(curve, end) == pytest.approx({"forecast_loss": 4.0, "forecast_low": 3.6, "forecast_high": 4.8})
    assert telemetry.band_at(None, end) == {}
    assert telemetry.forecast_curve([], config) is None
    assert telemetry.forecast_curve([forecast_row(law="{}")], config) is None


def test_every_step_of_a_run_says_what_it_cost_so_far_and_what_share_of_the_machine_it_used(tmp_path):
    data = training_data.write(parts.sequences(tmp_path), tmp_path / "files")
    allowance = Allowance(None, 2.0, since=1000.0, limit_usd=None, spent_usd=5.0)
    training.train_all([TrainingRun(str(tmp_path / "run"), data.folder, parts.small_train(), allowance=allowance, peak_flops=1e9)], threads=1)
    lines = training.read_metrics(tmp_path / "run" / training.METRICS)
    steps = [line for line in lines if line["event"] == "step"]
    for line in steps:
        assert line["cost_usd"] == pytest.approx(5.0 + 2.0 * (line["at"] - 1000.0), rel=1e-9)
        assert line["mfu"] == pytest.approx(parts.small_train().model.flops_per_token * 8 * parts.SEQ_LEN / line["seconds"] / 1e9)
    result = training.result_of(tmp_path / "run")
    assert result["mfu"] == pytest.approx(sum(s["mfu"] * s["seconds"] for s in steps[1:]) / sum(s["seconds"] for s in steps[1:]))
    assert [line["step"] for line in lines if line["event"] == "checkpoint"] == [10, 20, 30]
