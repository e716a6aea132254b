"""Which data days must be done again because another day changed after them, or because the recipe did.

A day drops a document because another day kept its like. When that other day is prepared again (other files, other code) and no longer
keeps it, the text is in no day at all: the dropping day is stale. Running its deduplication again finds that out by itself and does not
take the recorded result; ``moeline backfill --stale`` does exactly the stale days.
Change here: what makes a day stale. Not here: which copy survives (jobs/stages/deduplicate.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobs.config import PREPARE_STAGES, Recipe
from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import delta, results


@dataclass(frozen=True)
class StaleDay:
    """``lost``: how many documents it dropped for documents of which days that these no longer keep. ``other_rules``: the recipe has
    changed since, and no day of the new one stands in its place."""

    interval: str
    lost: dict[str, int] = field(default_factory=dict)
    other_rules: bool = False

    def why(self) -> str:
        reasons = [f"{n} documents were dropped for copies that {day} no longer keeps" for day, n in sorted(self.lost.items())]
        return "; ".join(["it was prepared with other rules", *reasons] if self.other_rules else reasons)


def stale_days(env: Environment, recipe: Recipe) -> list[StaleDay]:
    """The stale days of a recipe, in order."""
    last = PREPARE_STAGES[-1]
    config, prepared = recipe.config_hash(last), [r for r in results.of_stage(env, last) if r.recipe == recipe.name]
    current = {str(r.interval) for r in prepared if r.config_hash == config}
    found = {str(r.interval): StaleDay(str(r.interval), other_rules=True) for r in prepared if str(r.interval) not in current}
    for day, result in _newest(env, recipe.config_hash("deduplicate")).items():
        if lost := lost_copies(env, result):
            found[day] = StaleDay(day, lost, other_rules=day in found)
    return [found[day] for day in sorted(found)]


def lost_copies(env: Environment, result: StageResult) -> dict[str, int]:
    """Day -> documents that this deduplication dropped for documents the day no longer keeps.

    Looks only into days prepared again since, so it costs nothing where there are none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own = result.table("duplicates")
    since = {day: r for day, r in _newest(env, result.config_hash).items() if day != result.interval and r.table("duplicates") > own}
    if not since:
        return {}
    days = pa.array(sorted(since))
    dropped = delta.dataset(env, own, where_in=[str(result.interval)]).to_table(
        columns=["kept_interval", "kept_doc_id"], filter=pc.field("kept_interval").isin(days)
    )  # fmt: skip
    lost: dict[str, int] = {}
    for day in pc.unique(dropped["kept_interval"]).to_pylist():
        kept = delta.dataset(env, since[day].table("unique_documents"), where_in=[day]).to_table(columns=["doc_id"])["doc_id"]
        wanted = dropped.filter(pc.equal(dropped["kept_interval"], day))["kept_doc_id"]
        if gone := len(wanted) - pc.sum(pc.is_in(wanted, kept.combine_chunks())).as_py():
            lost[day] = gone
    return lost


def must_be_done_again(env: Environment, stage: str, found: StageResult) -> bool:
    """Whether a recorded result no longer holds although nothing it is identified by has changed."""
    return stage == "deduplicate" and bool(lost_copies(env, found))


def _newest(env: Environment, config: str) -> dict[str, StageResult]:
    """Day -> its newest deduplication with this config."""
    return {str(r.interval): r for r in results.of_stage(env, "deduplicate") if r.config_hash == config}


def summary(env: Environment, recipe: Recipe) -> dict[str, Any]:
    """What ``moeline stale --json`` prints."""
    found = stale_days(env, recipe)
    return {"recipe": recipe.name, "stale": [{"interval": d.interval, "lost": d.lost, "other_rules": d.other_rules, "why": d.why()} for d in found]}


def render(found: dict[str, Any]) -> str:
    if not found["stale"]:
        return f"No day of recipe {found['recipe']} is stale.\n"
    lines = [f"{day['interval']}  {day['why']}" for day in found["stale"]]
    return "\n".join([*lines, f"Do them again: moeline backfill --stale --recipe {found['recipe']}"]) + "\n"
