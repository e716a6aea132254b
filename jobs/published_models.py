"""Published models to hold our own beside: their scores, and their training compute priced by a sheet. Published numbers, nothing measured here.

Change here: a model, a score. Not here: prices (infra/env/*.toml), where they are drawn.

Compute is 6 x active parameters x tokens (attention left out). Dollars are that over what the sheet's machine does in a second, with the sheet's range
of the share of its peak that a training uses as the interval and the geometric mean as the point, as in ``moeline costs whatif``: what the training
would cost today at these prices, not what was paid. Data, failed runs and people are not in it. Who published no number of tokens has no cost.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import asdict, dataclass
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.price_sheet import InstanceType

_DBRX = "Databricks, Introducing DBRX (27 March 2024)"
_LLAMA3 = "Meta, Llama 3 model card (18 April 2024); instruct scores of that card"
BENCHMARKS = {"gauntlet": "Gauntlet v0.3", "mmlu": "MMLU, 5-shot"}


@dataclass(frozen=True)
class Published:
    """``gauntlet`` and ``mmlu``: shares right, 0 to 1; None: not published. ``tokens``: of pretraining; None: not published."""

    name: str
    params_total: float
    params_active: float
    tokens: float | None
    gauntlet: float | None
    mmlu: float | None
    source: str

    @property
    def flops(self) -> float | None:
        return None if self.tokens is None else 6.0 * self.params_active * self.tokens


MODELS = (
    Published("DBRX Instruct", 132e9, 36e9, 12e12, 0.668, 0.737, _DBRX),
    Published("Mixtral 8x7B Instruct", 46.7e9, 12.9e9, None, 0.607, 0.714, f"{_DBRX}; sizes: Jiang et al. 2024 (arXiv 2401.04088), which gives no tokens"),
    Published("Mixtral 8x7B base", 46.7e9, 12.9e9, None, 0.568, 0.719, f"{_DBRX}; sizes: Jiang et al. 2024 (arXiv 2401.04088), which gives no tokens"),
    Published("LLaMA 2 70B base", 70e9, 70e9, 2e12, 0.564, 0.698, f"{_DBRX}; tokens: Touvron et al. 2023 (arXiv 2307.09288)"),
    Published("LLaMA 2 13B base", 13e9, 13e9, 2e12, 0.438, None, f"{_DBRX}; tokens: Touvron et al. 2023 (arXiv 2307.09288)"),
    Published("LLaMA 3 8B Instruct", 8e9, 8e9, 15e12, None, 0.684, _LLAMA3),
    Published("LLaMA 3 70B Instruct", 70e9, 70e9, 15e12, None, 0.820, _LLAMA3),
    Published("MPT 7B", 6.7e9, 6.7e9, 1e12, 0.309, None, f"{_DBRX}; tokens: MosaicML, Introducing MPT-7B (5 May 2023)"),
)


def priced(env: Environment) -> list[dict[str, Any]]:
    """One dict per model: its published numbers, ``flops``, ``cost_usd``, ``cost_low``, ``cost_high`` (None where not known) and ``priced_by``.

    Priced by the machine of this environment's trainings; where its sheet tells no peak of that, by infra/env/cloud_gpu.toml.
    """
    try:
        sheet, machine = _machine(env)
        hourly, problem = sheet.prices.hourly(sheet.stage_resources("train")), ""
    except MoelineError as error:
        machine, hourly, problem = None, None, str(error)
    found = []
    for model in MODELS:
        cost: dict[str, float | None] = {"cost_usd": None, "cost_low": None, "cost_high": None}
        if machine is not None and hourly is not None and model.flops is not None:
            part = machine.share(sheet.stage_resources("train"))
            dear, cheap = (model.flops / (machine.peak_tflops * 1e12 * part * mfu) * hourly / 3600.0 for mfu in (machine.mfu_low, machine.mfu_high))
            cost = {"cost_usd": math.sqrt(dear * cheap), "cost_low": cheap, "cost_high": dear}
        by = f"{machine.name} of {sheet.prices.sheet}, {sheet.prices.purchase}: {machine.source}" if machine is not None else problem
        found.append({**asdict(model), "flops": model.flops, **cost, "priced_by": by if model.flops is not None else "tokens were not published"})
    return found


def _machine(env: Environment) -> tuple[Environment, InstanceType]:
    """The environment whose sheet prices, and the machine of its trainings with a peak."""
    today = dt.datetime.now(dt.UTC).date()
    for sheet in (env, Environment.load("cloud_gpu", env.home)):
        name = sheet.stage_resources("train").instance
        machine = sheet.prices.instance(name, today) if name else None
        if machine is not None and machine.peak_tflops and machine.mfu_low and machine.mfu_high:
            return sheet, machine
    raise MoelineError("No price sheet has a training machine with peak_tflops, mfu_low and mfu_high. Add them to [[prices.instances]].")
