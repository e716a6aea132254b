"""Train: the recipe's model, launched once through Ray Train, resumed from its last checkpoint by a retry.

Change here: what a training run records and reports. Not here: the optimiser (models/train_loop.py), checkpoints and resuming
(jobs/services/training.py), how processes start (jobs/services/ray.py).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.config import TrainConfig
from jobs.contract import BudgetExceeded, MoelineError, StageOutput, Tools, canonical
from jobs.services import order_file, run_control, telemetry, training, training_data, training_order
from jobs.services.training import TrainingRun
from models.unigram import predicted_tokens, unigram_loss

ENGINE = "arrow"
READS = {"sequences": "all"}
WRITES = ("checkpoints",)
REVISION = 1
_LOG_SECONDS = 1.0  # metrics go to the tracker at most this often, besides the last step's
_BY_SOURCE = {"tokens_by_source": "tokens", "epochs_by_source": "epochs"}
_GRACE_SECONDS = 12.0  # for a step and a checkpoint after SIGTERM; Airflow's tasks kill a stage after 20 (dags/stage_task.py)
_CLOSING_SECONDS = 10.0  # from the end of the training to the end of the stage: Ray, checks, publishing
_FIGURES = (  # of telemetry.summary
    "min_tokens_per_second", "median_tokens_per_second", "mfu", "peak_flops", "worst_expert_load", "worst_expert_load_entropy", "most_starved_experts",
    "peak_memory_bytes", "spikes", "stalled_share",
)  # fmt: skip
_SCAN_ROWS = 8192  # sequences counted at a time


def run(config: TrainConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Train ``config`` on the packed sequences; one row of ``checkpoints``: the final one, and how good it is.

    Raises MoelineError when there is nothing to train on or training cannot be finished; a retry continues where it stopped.
    """
    from jobs.services import ray

    _require_even(config)
    name = f"checkpoints/{tools.run_key}"
    folder = Path(tools.artifact_dir(name))
    data = training_data.write(inputs["sequences"], Path(tools.scratch) / "sequences")
    try:
        order = training_order.order_of(config, data)
    except ValueError as error:  # models know nothing of jobs' errors
        raise MoelineError(f"This mixture cannot be trained on these sequences: {error}") from error
    about = {"sequences": getattr(tools, "inputs_read", {}).get("sequences"), "mixture": canonical(config.mixture)}
    order_file.write(folder, order, data, config.steps, about)
    unigram = _unigram(data, config)
    curve = _forecast(config, tools)
    limit = tools.spending.limit if getattr(tools, "spending", None) else None
    telemetry.write_about(folder, config, recipe=tools.recipe, currency=tools.env.prices.currency, budget_usd=limit, curve=curve)
    reporter = Reporter(config, tools, curve)
    started = time.monotonic()
    held = tools.env.stage_resources("train")
    work = TrainingRun(str(folder), data.folder, config, allowance=_allowance(folder, tools), peak_flops=telemetry.sheet_peak(tools.env, held))
    run_control.withdraw_request(folder)
    with run_control.stopped_through(folder, _GRACE_SECONDS):
        launch = ray.train(
            tools.env, [work], name=f"train-{tools.run_key}", resources=held, processes=config.workers, scratch=tools.scratch,
            on_step=reporter.on_step, together=config.workers > 1,
        )  # fmt: skip
    result = launch.results[0]
    if not result["steps"]:
        raise BudgetExceeded(f"The budget of ${result['limit_usd']:.4f} does not suffice for one step of the training; nothing was trained. Give a larger one.")
    by_source = training_order.read_per_source(order, data, result["steps"])
    metrics = _metrics(config, data, result, unigram) | {name: {s: read[key] for s, read in by_source.items()} for name, key in _BY_SOURCE.items()}
    metrics |= {"order": order.digest(), "launch_seconds": launch.launch_seconds or 0.0, "wall_seconds": time.monotonic() - started}
    run_id = reporter.finish(metrics)
    row = {
        "run_key": tools.run_key, "uri": f"{name}/{result['checkpoint']}", "sha256": result["sha256"], "step": result["steps"], "tokens": result["tokens"],
        "loss": result["loss"], "held_out_loss": result["held_out_loss"], "config": json.dumps(canonical(config), sort_keys=True), "final": True,
        "mlflow_run_id": run_id,
    }  # fmt: skip
    return StageOutput({"checkpoints": _table([row])}, metrics)


def _require_even(config: TrainConfig) -> None:
    """Raise MoelineError when the workers cannot share the experts evenly."""
    workers, experts, among = config.workers, config.model.n_experts, config.expert_parallel
    if workers < 1 or among < 1 or workers % among or experts % among:
        raise MoelineError(
            f"The recipe asks for {workers} workers and deals {experts} experts out to {among} of them (expert_parallel): that number must divide both. "
            "Set workers and expert_parallel in the recipe."
        )


def _allowance(folder: Path, tools: Tools) -> run_control.Allowance:
    """What the training costs and may cost from now on. A run that ended early for a smaller budget is opened again.

    Raises BudgetExceeded when nothing is left and there is no checkpoint to make a model of.
    """
    spending, per_second, until_now = getattr(tools, "spending", None), tools.stage_price("train", 1.0), tools.cost_so_far()
    if spending is None:
        return run_control.Allowance(None, per_second, time.time(), None, until_now)
    training.reopen(folder, spending.limit)
    left = spending.left - until_now - _CLOSING_SECONDS * per_second
    if left <= 0 and not (folder / training.RESULT).is_file() and not any(folder.glob("step-*")):
        raise BudgetExceeded(
            f"Nothing is left of the budget of ${spending.limit:.4f} for the training: ${spending.spent:.4f} were spent on the forecast and earlier attempts, "
            f"and evaluation and review need ${spending.kept:.4f}. Run it again with a larger budget."
        )
    return run_control.Allowance(left, per_second, time.time(), spending.limit, spending.earlier + until_now)


def _forecast(config: TrainConfig, tools: Tools) -> dict[str, Any] | None:
    """The loss curve that was forecast for this training, if one was."""
    from jobs.services import delta

    key = getattr(getattr(tools, "spending", None), "forecast_key", None)
    return telemetry.forecast_curve(delta.rows(tools.env, "forecasts", where_in=[key]), config) if key else None


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def _metrics(config: TrainConfig, data: training_data.TrainingData, result: Mapping[str, Any], unigram: float) -> dict[str, Any]:
    seen = result["sequences_seen"] / data.sequences["train"]
    return {
        "loss": result["loss"], "held_out_loss": result["held_out_loss"], "unigram_loss": unigram, "tokens": result["tokens"], "steps": result["steps"],
        "tokens_per_second": result["tokens"] / result["seconds"], "wall_seconds_training": result["seconds"], "params_total": config.model.params_total,
        "params_active": config.model.params_active, "flops": config.model.flops_per_token * config.tokens_per_step * result["steps"],
        "resumed_from_step": result["resumed_from_step"], "skipped_steps": result["skipped_steps"], "epochs": seen,
        "corpus_tokens": data.tokens["train"], "checkpoint": result["checkpoint"], "tokenizer_id": data.tokenizer_ids[0],
        **{name: result[name] for name in _FIGURES if result.get(name) is not None},
        **({"ended_early": early, "steps_planned": config.steps, "budget_usd": result["limit_usd"]} if (early := result.get("ended_early")) else {}),
    }  # fmt: skip


def _unigram(data: training_data.TrainingData, config: TrainConfig) -> float:
    """Cross entropy (nats per token) of the same held-out tokens under the training tokens' unigram counts."""
    tokens, _, n_tokens = training_data.read_arrays(data.folder, "train")
    counts = np.zeros(config.model.vocab_size)
    for start in range(0, len(tokens), _SCAN_ROWS):
        rows = slice(start, start + _SCAN_ROWS)
        real = tokens[rows][np.arange(data.seq_len)[None, :] < n_tokens[rows, None]]
        if len(real) and int(real.max()) >= len(counts):
            raise MoelineError(
                f"The corpus holds token id {int(real.max())}, the model has a vocabulary of {len(counts)}: the recipe's tokenizer did not pack this corpus."
            )
        counts += np.bincount(real, minlength=len(counts))
    held_out = training_data.read_arrays(data.folder, "held_out", spread=config.held_out_sequences)
    return unigram_loss(counts, predicted_tokens(*held_out))


class Reporter:
    """Shows the progress of a training and sends its metrics to the tracker while it runs. A tracker that fails never fails the run."""

    def __init__(self, config: TrainConfig, tools: Tools, forecast: Mapping[str, Any] | None = None) -> None:
        self.config, self.tools, self.forecast = config, tools, forecast
        self._tracker: Any = None
        self._broken = False
        self._logged_at = float("-inf")
        self._last: dict[str, Any] = {}
        self._speeds: list[float] = []

    def on_step(self, index: int, line: Mapping[str, Any]) -> None:
        self._last = dict(line)
        self._speeds = [*self._speeds[-19:], line["tokens_per_second"]]
        speed = sum(self._speeds) / len(self._speeds)
        left = (self.config.steps - line["step"]) * self.config.tokens_per_step / speed
        text = f"step {line['step']}/{self.config.steps}, loss {line['loss']:.3f}, {speed:,.0f} tokens/s, {left:.0f} s of training left"
        self.tools.progress(line["step"], self.config.steps, text)
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._log(line)

    def _log(self, line: Mapping[str, Any]) -> None:
        self._logged_at = time.monotonic()
        values = telemetry.scalars(line) | telemetry.band_at(self.forecast, line["tokens"])
        self._send(lambda tracker: tracker.log_metrics(values, line["step"]))

    def _send(self, call: Any) -> None:
        if self._broken:
            return
        try:
            if self._tracker is None:
                self._tracker = getattr(self.tools, "tracker", None)
                if self._tracker is None:
                    self._broken = True
                    return
                from jobs.services.ray import flat_params

                self._tracker.log_params(flat_params(canonical(self.config)))
            call(self._tracker)
        except Exception as error:  # whatever the tracking server does, the money for the training is spent
            self._broken = True
            print(f"[train] metrics are no longer sent to MLflow: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def finish(self, metrics: Mapping[str, Any]) -> str | None:
        """Log the last step and the summary, close the run; its id in the tracker, or None without one."""
        if self._last:
            self._log(self._last)
        summary = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        self._send(lambda tracker: (tracker.log_metrics(summary, self.config.steps), tracker.finish("FINISHED")))
        return getattr(self._tracker, "run_id", None)
