"""Forecast: train small proxies of the recipe's model in one launch, fit scaling laws, and write down what the real run will reach and
cost, hashed, before any money is spent on it.

Change here: what is predicted, when the answer is stop. Not here: the laws (models/scaling.py), fits and intervals (models/scaling_fit.py),
which proxies (jobs/recipes.py).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.config import ForecastConfig, TrainConfig
from jobs.contract import MoelineError, StageOutput, Tools, canonical, config_hash
from jobs.proxies import scaling_params
from jobs.services import training_data
from jobs.services.training import TrainingRun
from models.scaling import RunPoint
from models.scaling_fit import Forecast, forecast_accuracy, forecast_loss

ENGINE = "arrow"
READS = {"sequences": "all", "benchmark_items": "all"}
WRITES = ("forecasts",)
REVISION = 2
_LEAST_PROXIES = 4
_ITEMS_PER_TASK = 40  # questions a proxy answers: enough to anchor a law, a second or two of scoring
USUAL_LAUNCH_SECONDS = 25.0  # when every proxy was trained before and nothing had to be launched
PROCESSES = 2  # on one machine proxies are small: two beside each other on half the cores each get more done than one on all
_TIMED_STEPS = 20  # of the target itself: what its speed is on these cores
_TIMING_SPREAD = 0.3  # relative: how far the speed of a machine that others use too moves between minutes


def run(config: ForecastConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Four rows of ``forecasts`` (loss, accuracy, cost_usd, wall_seconds) for ``config.target`` and the decision go, ask or stop.

    Proxies that were trained before on the same sequences are taken from their records. Raises MoelineError with fewer than 4 different ones.
    """
    from jobs.services import ray

    if (different := len(set(config.proxies))) < max(_LEAST_PROXIES, len(config.proxies)):
        raise MoelineError(f"A forecast needs at least {_LEAST_PROXIES} proxy trainings, all different; the recipe has {different}. See jobs/recipes.py.")
    began = time.monotonic()
    data = training_data.write(inputs["sequences"], Path(tools.scratch) / "sequences")
    prepared = time.monotonic() - began
    questions, suite = _questions(config, inputs["benchmark_items"], data, tools)
    proxies = [
        TrainingRun(folder=_folder(tools, "proxy", proxy, data, suite), data=data.folder, config=proxy, keep_checkpoints=0, suite=questions)
        for proxy in config.proxies
    ]  # fmt: skip
    timed = TrainingRun(folder=_folder(tools, "timing", config.target, data, ""), data=data.folder, config=config.target, timed_steps=_TIMED_STEPS)
    works = [*proxies, timed]
    reused = sum((Path(work.folder) / "result.json").is_file() for work in proxies)
    resources = tools.env.stage_resources("forecast")
    launch = ray.train(
        tools.env, works, name=f"forecast-{tools.run_key}", resources=resources, processes=1 if resources.gpus else PROCESSES, scratch=tools.scratch,
        on_step=_Progress(proxies, tools).on_step,
    )  # fmt: skip
    *launch.results, timing = launch.results
    fixed = (launch.launch_seconds or USUAL_LAUNCH_SECONDS) + prepared
    forecasts = _forecasts(config, launch.results, timing, fixed, tools)
    decision = _decision(config, forecasts["cost_usd"].predicted + tools.cost_so_far())
    rows = _rows(config, forecasts, launch.results, decision, tools.run_key)
    metrics = _metrics(config, data, launch, forecasts, decision, tools) | {"proxies_reused": reused, "content_hash": rows[0]["content_hash"]}
    metrics |= {
        "sequences_digest": data.digest,
        "questions_digest": suite,
        "suite_hash": config_hash(config.suite),
    }  # with its config, what a proxy's record is named by
    tools.progress(1, 1, f"loss {forecasts['loss'].predicted:.3f}, ${forecasts['cost_usd'].predicted:.4f} for the training: {decision}")
    import pyarrow as pa

    return StageOutput({"forecasts": pa.Table.from_pylist(rows)}, metrics)


def _folder(tools: Tools, what: str, config: TrainConfig, data: training_data.TrainingData, suite: str) -> str:
    return tools.artifact_dir(f"proxies/{proxy_identity(config, data.digest, suite, what=what)}")


def proxy_identity(config: TrainConfig, sequences: str, suite: str, *, what: str = "proxy") -> str:
    """Name of a proxy's record: the same training on the same sequences and questions (given by digest) is done once, whoever asks."""
    text = json.dumps({"stage": what, "revision": REVISION, "config": canonical(config), "sequences": sequences, "suite": suite}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _questions(config: ForecastConfig, items: Any, data: training_data.TrainingData, tools: Tools) -> tuple[str, str]:
    """(file, digest) of the questions every proxy answers: the first few of each task of the suite, in the suite's own order."""
    tokenizer = Path(tools.artifact_dir(f"tokenizers/{data.tokenizer_ids[0]}")) / "tokenizer.json"
    if not tokenizer.is_file():
        raise MoelineError(f"Tokenizer {data.tokenizer_ids[0]} is not among the artifacts (looked for {tokenizer}). Run stage pack again.")
    wanted = config.suite.own_data_tasks
    rows = [] if items is None else [r for r in items.to_table(columns=["benchmark", "item_id", "item"]).to_pylist() if r["benchmark"] in wanted]
    load = {
        "benchmark_items": sorted(rows, key=lambda r: (r["benchmark"], r["item_id"])), "own_data_tasks": wanted, "seed": config.suite.seed,
        "symbolic_tasks": config.suite.symbolic_tasks, "items_per_task": min(_ITEMS_PER_TASK, config.suite.items_per_task),
    }  # fmt: skip
    text = json.dumps({"tokenizer": str(tokenizer), "load": load})
    file = Path(tools.scratch) / "questions.json"
    file.write_text(text)
    return str(file), hashlib.sha256(json.dumps(load, sort_keys=True).encode()).hexdigest()


def _tokens(config: TrainConfig) -> int:
    return config.steps * config.tokens_per_step


class _Progress:
    """Progress over all proxies, weighted by FLOPs."""

    def __init__(self, works: Sequence[TrainingRun], tools: Tools) -> None:
        self.works, self.tools = works, tools
        self.done = dict.fromkeys(range(len(works)), 0.0)
        self.total = sum(work.cost for work in works)

    def on_step(self, index: int, line: Mapping[str, Any]) -> None:
        work = self.works[index]
        self.done[index] = work.cost * line["step"] / work.config.steps
        text = (
            f"proxy {index + 1}/{len(self.works)}, step {line['step']}/{work.config.steps}, loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s"
        )
        self.tools.progress(sum(self.done.values()), self.total * 1.001, text)


def _forecasts(config: ForecastConfig, results: Sequence[Mapping[str, Any]], timing: Mapping[str, Any], fixed: float, tools: Tools) -> dict[str, Forecast]:
    target = config.target
    points = [RunPoint(scaling_params(p), _tokens(p), r["held_out_loss"]) for p, r in zip(config.proxies, results, strict=True)]
    try:
        loss = forecast_loss(points, params=scaling_params(target), tokens=_tokens(target), seed=target.seed)
    except ValueError as error:  # models know nothing of jobs' errors
        raise MoelineError(f"No loss law could be fitted to the {len(points)} proxies: {error}") from error
    wall = _wall_seconds(config, results, timing, fixed)
    accuracy = forecast_accuracy(
        [r["held_out_loss"] for r in results], [r["accuracy"] for r in results], chance=results[0]["chance"], items=results[0]["suite_items"], loss=loss
    )
    return {"loss": loss, "accuracy": accuracy, "wall_seconds": wall, "cost_usd": _priced(wall, tools)}


def _wall_seconds(config: ForecastConfig, results: Sequence[Mapping[str, Any]], timing: Mapping[str, Any], fixed: float) -> Forecast:
    """Seconds of the train stage: ``fixed`` (launch and data), steps as fast as the target's own timed ones, the held-out loss.

    The naive forecast takes the speed per FLOP of the largest proxy.
    """
    target = config.target
    flops = [p.model.flops_per_token * p.tokens_per_step for p in config.proxies]
    best = max(range(len(results)), key=lambda i: (flops[i] * config.proxies[i].steps, -i))
    per_flop = results[best]["median_step_seconds"] / flops[best]
    naive = fixed + timing["held_out_seconds"] + per_flop * target.model.flops_per_token * _tokens(target)
    total = fixed + timing["step_seconds"] * target.steps + timing["held_out_seconds"]
    details = {"form": "fixed + steps * step_seconds + held_out", "fixed": fixed, "step_seconds": timing["step_seconds"],
               "held_out": timing["held_out_seconds"], "timed_steps": _TIMED_STEPS}  # fmt: skip
    return Forecast(total, total / (1 + _TIMING_SPREAD), total * (1 + _TIMING_SPREAD), naive, details)


def _priced(wall: Forecast, tools: Tools) -> Forecast:
    """Dollars of the train stage for its wall seconds, with the resources this environment gives it."""
    price = {name: tools.stage_price("train", getattr(wall, name)) for name in ("predicted", "low", "high", "naive")}
    return Forecast(**price, details={"form": "wall_seconds at the price of the resources of stage train"})


def _decision(config: ForecastConfig, cost_usd: float) -> str:
    return "go" if cost_usd <= config.budget_usd else config.on_over_budget


def _rows(config: ForecastConfig, forecasts: Mapping[str, Forecast], results: Sequence[Mapping[str, Any]], decision: str, run_key: str) -> list[dict[str, Any]]:
    registered_at = dt.datetime.now(dt.UTC)
    proxies = [{"config": canonical(p), "reached": dict(r)} for p, r in zip(config.proxies, results, strict=True)]
    rows = [
        {
            "run_key": run_key, "metric": metric, "predicted": f.predicted, "low": f.low, "high": f.high, "naive": f.naive,
            "target": json.dumps(canonical(config.target), sort_keys=True), "law": json.dumps(f.details, sort_keys=True),
            "proxies": json.dumps(proxies, sort_keys=True), "decision": decision, "registered_at": registered_at,
        }
        for metric, f in forecasts.items()
    ]  # fmt: skip
    digest = content_hash(rows)
    return [{**row, "content_hash": digest} for row in rows]


def content_hash(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over the canonical JSON of all rows without this hash, in the order of their metric: proves they were not changed later."""
    plain = [{key: value for key, value in row.items() if key != "content_hash"} for row in sorted(rows, key=lambda r: r["metric"])]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=lambda moment: moment.astimezone(dt.UTC).isoformat()).encode()).hexdigest()


def _metrics(
    config: ForecastConfig, data: training_data.TrainingData, launch: Any, forecasts: Mapping[str, Forecast], decision: str, tools: Tools
) -> dict[str, Any]:
    target, results = config.target, launch.results
    epochs = _tokens(target) / max(1, data.tokens["train"])
    found: dict[str, Any] = {"decision": decision, "budget_usd": config.budget_usd, "spent_usd": tools.cost_so_far()}
    for metric, f in forecasts.items():
        found |= {metric: f.predicted, f"{metric}_low": f.low, f"{metric}_high": f.high, f"{metric}_naive": f.naive}
    found |= {
        "law": forecasts["loss"].details["chosen"], "launch_seconds": launch.launch_seconds or 0.0, "proxy_seconds": sum(r["seconds"] for r in results),
        "tokens": sum(r["tokens"] for r in results), "flops": sum(p.model.flops_per_token * _tokens(p) for p in config.proxies),
        "corpus_tokens": data.tokens["train"], "target_tokens": _tokens(target), "epochs": epochs,
    }  # fmt: skip
    if epochs > 1:
        found["note"] = (
            f"the corpus has {data.tokens['train']:,} training tokens, the target reads {_tokens(target):,}: {epochs:.2f} epochs, which laws do not know"
        )
    return found
