"""Which data days were never compared with benchmark items of another day, because those were made after the day was prepared.

Read from recorded results alone: which version of benchmark_items a day's decontamination read, and what every other day's items are now
(their digest among its metrics). Such a day is no stale day: nothing it did became wrong, and doing every day again for every day that is
added would never end. The evaluation keeps items apart whose tokens stand in training (models/gauntlet/overlap.py), these included.
Change here: what counts as not compared. Not here: stale days (jobs/stale.py).
"""

from __future__ import annotations

from jobs.config import Recipe
from jobs.contract import StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import results

_TABLE = "benchmark_items"


def unchecked_days(env: Environment, recipe: Recipe) -> dict[str, dict[str, int]]:
    """Day -> other day -> how many items of that one it was not compared with."""
    config = recipe.config_hash("decontaminate")
    done = [r for r in results.of_stage(env, "decontaminate") if r.interval and r.config_hash == config]
    newest = {str(r.interval): r for r in sorted(done, key=lambda r: r.table(_TABLE))}
    found: dict[str, dict[str, int]] = {}
    for day, result in sorted(newest.items()):
        read = TableVersion.parse(result.inputs[_TABLE]) if _TABLE in result.inputs else TableVersion(_TABLE, -1)
        seen = {str(r.interval): _digest(r) for r in sorted(done, key=lambda r: r.table(_TABLE)) if r.table(_TABLE) <= read}
        for other, now in sorted(newest.items()):
            items = sum(now.metrics.get("own_items", {}).values())
            if other != day and items and seen.get(other) != _digest(now):
                found.setdefault(day, {})[other] = items
    return found


def _digest(result: StageResult) -> str:
    """What stands for a day's items; results from before the digest was kept stand for themselves."""
    return str(result.metrics.get("own_items_digest", result.run_key))


def render(found: dict[str, dict[str, int]]) -> str:
    if not found:
        return ""
    lines = [f"{day}  was not compared with {sum(others.values())} benchmark items of {', '.join(others)}, made after it" for day, others in found.items()]
    return "\n".join([*lines, "These days are not stale: evaluation keeps items apart whose text stands in training."]) + "\n"
