"""What a training's numbers mean in money and in shares of the machine: MFU, cost so far, the run in a few figures, the curve that was forecast.

MFU = training FLOPs of a step (ModelConfig.flops_per_token: active experts and attention, no recomputation) / seconds / peak FLOP/s. The peak is,
in this order: ``peak_tflops`` of the machine type in infra/env/<name>.toml; the published dense bf16 peak of a known GPU; what one matrix product
of 1024 x 1024 reaches here in the training's precision, best of several (a CPU has no published one that it keeps up).
Change here: what is derived from steps. Not here: what a step measures (models/step_metrics.py), where it is shown (infra/dashboards).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.config import TrainConfig
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.price_sheet import Resources
from jobs.services.results import write_whole

FORECAST = "forecast.json"  # in a training's folder: the curve that was forecast
PUBLISHED_PEAKS = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}  # FLOP/s, dense bf16, SXM: NVIDIA's data sheets
_MEASURE_SECONDS = 0.2
_CURVE_POINTS = 60
_SCALARS = (
    "loss", "load_balancing_loss", "grad_norm", "learning_rate", "tokens_per_second", "tokens", "expert_load_max_over_mean", "router_confidence", "router_z",
    "mfu", "cost_usd",
)  # fmt: skip


def sheet_peak(env: Environment, held: Resources) -> float | None:
    """FLOP/s of what is held, if the environment's price sheet gives the peak of its machine type."""
    import datetime as dt

    if not held.instance:
        return None
    try:
        machine = env.prices.instance(held.instance, dt.datetime.now(dt.UTC).date())
    except MoelineError:  # what it costs complains about that
        return None
    return machine.peak_tflops * 1e12 * machine.share(held) if machine.peak_tflops else None


def peak_here(precision: str) -> float:
    """FLOP/s this process can reach with its threads or its GPU, in ``precision`` (bf16 or fp32)."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        for known, peak in PUBLISHED_PEAKS.items():
            if known in name and precision == "bf16":
                return peak
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, best = 1024, float("inf")
    a = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    deadline = time.perf_counter() + _MEASURE_SECONDS
    for repeat in range(50):
        began = time.perf_counter()
        _ = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
        if repeat and time.perf_counter() > deadline:
            break
    return 2.0 * size**3 / best


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """One step for a tracker: plain numbers; of what is measured by layer, the worst layer (of starved experts, all). Absent ones are left out."""
    found = {name: line[name] for name in _SCALARS if line.get(name) is not None}
    for name, worst in (("expert_load_min", min), ("expert_load_max", max), ("expert_load_entropy", min), ("starved_experts", sum)):
        if line.get(name):
            found[name] = worst(line[name])
    if line.get("peak_memory_bytes"):
        found["peak_memory_gib"] = line["peak_memory_bytes"] / 2**30
    return found


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run in a few figures, from its metrics. The first step after every start warms up and counts for no speed."""
    steps = [line for line in lines if line["event"] == "step"]
    warming = {1, *(line["step"] + 1 for line in lines if line["event"] == "started")}
    warm = [line for line in steps if line["step"] not in warming] or steps
    peaks = [line["peak_flops"] for line in lines if line["event"] == "started" and line.get("peak_flops")]
    found: dict[str, Any] = {
        "min_tokens_per_second": min(line["tokens_per_second"] for line in warm), "worst_expert_load": max(line["expert_load_max_over_mean"] for line in warm),
        "median_tokens_per_second": statistics.median(line["tokens_per_second"] for line in warm), "peak_flops": peaks[-1] if peaks else None,
        "spikes": sum(line.get("skipped_because") == "spike" for line in steps),
    }  # fmt: skip
    if any(line.get("mfu") for line in warm):
        found["mfu"] = sum(line["mfu"] * line["seconds"] for line in warm if line.get("mfu")) / sum(line["seconds"] for line in warm if line.get("mfu"))
    for name, of_step, of_run in (("expert_load_entropy", min, min), ("starved_experts", sum, max)):
        if seen := [of_step(line[name]) for line in warm if line.get(name)]:
            found[{"expert_load_entropy": "worst_expert_load_entropy", "starved_experts": "most_starved_experts"}[name]] = of_run(seen)
    if memory := [line["peak_memory_bytes"] for line in steps if line.get("peak_memory_bytes")]:
        found["peak_memory_bytes"] = max(memory)
    saves = [line for line in lines if line["event"] == "checkpoint"]
    found["stalled_share"] = sum(line["stalled_seconds"] for line in saves) / max(1e-9, sum(line["seconds"] for line in steps))
    return found


def forecast_curve(rows: Iterable[Mapping[str, Any]], config: TrainConfig) -> dict[str, Any] | None:
    """The loss that was forecast for every number of tokens up to the end, from the rows of one forecast; None when it is not about this training.

    ``points``: (tokens, predicted, low, high). The law is evaluated at so many tokens, scaled to meet the forecast at the end; the interval is the
    end's, as a share. It says where a training of so many tokens would *end*: a run that has not decayed its learning rate yet lies above it.
    """
    import numpy as np

    from models.scaling import LossLaw

    found = next((row for row in rows if row["metric"] == "loss"), None)
    if found is None or not found["predicted"] > 0:
        return None
    end, params = config.steps * config.tokens_per_step, config.model.flops_per_token / 6.0
    about = json.loads(found["law"])
    laws = [LossLaw(**law) for form, law in about.get("laws", {}).items() if form == about.get("chosen")]
    if not laws:
        return None
    tokens = np.unique(np.geomspace(max(config.tokens_per_step, end / 200), end, _CURVE_POINTS).astype(np.int64))
    at_end = laws[0].predict(params, end)
    low, high = found["low"] / found["predicted"], found["high"] / found["predicted"]
    points = []
    for n in tokens.tolist():
        loss = laws[0].predict(params, n) / at_end * found["predicted"]
        points.append((n, loss, loss * low, loss * high))
    return {"predicted": found["predicted"], "low": found["low"], "high": found["high"], "form": about["chosen"], "points": points}


def band_at(curve: Mapping[str, Any] | None, tokens: int) -> dict[str, float]:
    """What was forecast for so many tokens, for a tracker; {} without a forecast."""
    import numpy as np

    if curve is None:
        return {}
    columns = list(zip(*curve["points"], strict=True))
    names = ("forecast_loss", "forecast_low", "forecast_high")
    return {name: float(np.interp(tokens, columns[0], column)) for name, column in zip(names, columns[1:], strict=True)}


def write_forecast(folder: Path, curve: Mapping[str, Any] | None) -> None:
    """Leave the curve beside the run's metrics, for the page."""
    if curve is not None:
        write_whole(folder / FORECAST, json.dumps(curve).encode())
