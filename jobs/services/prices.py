"""What a run's stages cost per token, measured: resources an attempt held and seconds it took (table ``costs``), at this environment's list prices.

Change here: which attempts count, what scales with tokens. Not here: the price sheet (infra/env/*.toml), who asks (jobs/proposals.py).
A price that is missing is an error where everything depends on it (training), and named as missing elsewhere. It is never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError, StageResult
from jobs.environment import Environment, Resources

Charges = Mapping[Any, Sequence[Mapping[str, Any]]]
_ONCE = ("evaluate", "review", "register")  # cost the same however many tokens were trained on


@dataclass(frozen=True)
class Measured:
    """Prices in ``currency``: per trained token (``train``, ``forecast``: proxies train on a share of the target's tokens), per corpus token
    (``prepare``; ``pack``: its last step alone), per build (``once``: evaluate, review, register). None: not recorded."""

    run_id: str
    environment: str
    currency: str
    home: Path
    train: float
    forecast: float | None
    prepare: float | None
    pack: float | None
    once: Mapping[str, float | None]

    def price(self, tokens: int | None, added: int, prepared: int, to_land: int, *, packed: int = 0) -> dict[str, Any]:
        """``added_usd``: training (and proxies) of the ``added`` tokens. ``build_usd``: a whole build of ``tokens``, with ``prepared`` corpus tokens
        prepared and ``packed`` ones only packed anew. ``landing_usd``: preparing ``to_land`` tokens. ``not_priced``: parts that are in none of these,
        because nobody measured them.
        """
        per_token = self.train + (self.forecast or 0.0)
        missing = [stage for stage, usd in {"forecast": self.forecast, **self.once}.items() if usd is None]
        if self.prepare is None and (prepared or to_land):
            missing.append("prepare")
        if self.pack is None and packed:
            missing.append("pack")
        anew = prepared * (self.prepare or 0.0) + packed * (self.pack or 0.0)
        build = None if tokens is None else tokens * per_token + sum(usd or 0.0 for usd in self.once.values()) + anew
        return {
            "added_usd": added * per_token if tokens is not None else None, "build_usd": build,
            "landing_usd": to_land * self.prepare if to_land and self.prepare is not None else None, "not_priced": missing,
        }  # fmt: skip

    def about(self) -> dict[str, Any]:
        """The prices themselves and where they come from."""
        return {
            "from_run": self.run_id, "environment": self.environment, "currency": self.currency, "train_per_token": self.train,
            "forecast_per_token": self.forecast, "prepare_per_token": self.prepare, "pack_per_token": self.pack, "once": dict(self.once),
        }  # fmt: skip


def measure(
    env: Environment, charges: Charges, run: Mapping[str, Any], trained: StageResult, prepared: Sequence[StageResult], corpus_tokens: int
) -> Measured:  # fmt: skip
    """Prices of the run described by ``run`` (a row of report.runs). Raises MoelineError when its training has no cost row or the sheet no price."""
    tokens = int(trained.metrics["tokens"])
    tries = [c for c in charges.get(trained.run_key, []) if c["x_Outcome"] in ("succeeded", "failed", "killed")]  # shared idle time is no part of its price
    if not trained.metrics.get("resumed_from_step"):  # else the killed tries it continued are part of it
        tries = [c for c in tries if c["x_Outcome"] == "succeeded"]
    cost = _repriced(env, tries)
    if cost is None:
        raise MoelineError(f"The training of run {run['run_id']} has no row in the table costs, so nothing can be priced. Train it again.")
    keys = run["run_keys"]

    def of_stage(stage: str) -> float | None:
        return _succeeded(env, charges, keys[stage]) if stage in keys else None

    forecast = of_stage("forecast")

    def per_corpus_token(days: Sequence[StageResult]) -> float | None:
        usd = [_succeeded(env, charges, day.run_key) for day in days]
        return sum(d for d in usd if d is not None) / corpus_tokens if usd and None not in usd and corpus_tokens else None

    return Measured(
        run["run_id"], env.name, env.prices.currency, env.home, cost / tokens, None if forecast is None else forecast / tokens,
        per_corpus_token(prepared), per_corpus_token([day for day in prepared if day.stage == "pack"]), {stage: of_stage(stage) for stage in _ONCE},
    )  # fmt: skip


def _succeeded(env: Environment, charges: Charges, run_key: str) -> float | None:
    return _repriced(env, [c for c in charges.get(run_key, []) if c["x_Outcome"] == "succeeded"])


def _repriced(env: Environment, tries: Iterable[Mapping[str, Any]]) -> float | None:
    """What these attempts would cost at the price sheet of now; None when there are none. Raises MoelineError when the sheet gives them no price."""
    total = None
    for row in tries:
        held = Resources(row["x_Cores"], row["x_MemoryGib"], row["x_Gpus"], row.get("x_InstanceType") or "")
        unpriced = "gpu_hour" if held.gpus and not held.instance and not env.prices.gpu_hour else None
        usd = 0.0 if unpriced else env.prices.allocated(held, row["x_WallSeconds"])
        unpriced = unpriced or ("core_hour and gib_hour" if not usd and row["x_WallSeconds"] else None)
        if unpriced:  # a sheet may put all of a machine's price on its cores, or on its GPUs
            raise MoelineError(
                f"Stage {row['x_Stage']} held {held.cores:g} cores, {held.memory_gib:g} GiB and {held.gpus:g} GPUs, and environment {env.name} has no price "
                f"for that ({unpriced} is 0). Set it in [prices] of infra/env/{env.name}.toml."
            )
        total = (total or 0.0) + usd
    return total
