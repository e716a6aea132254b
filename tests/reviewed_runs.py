"""A small reviewed run written into real tables: two prepared days, a training, its review and every charge; nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from jobs import recipes
from jobs.contract import StageResult
from jobs.environment import Environment, Resources
from jobs.services import delta, ledger, results

TRAIN = "a1b2c3d4" * 4
DAYS = ("2026-11-01", "2026-11-02")
SMOKE = recipes.load("smoke")
CORPUS = {"python-code": 800_000, "python-docs": 200_000}
SECONDS = {"train": 3600.0, "forecast": 1800.0, "evaluate": 360.0, "review": 36.0, "pack": 72.0, "clean": 72.0}
GROUPS = (  # failures, [(source, share of similarity)]
    (60, (("python-docs", 0.75), ("python-code", 0.25))), (30, (("python-code", 1.0),)), (10, ()),
)  # fmt: skip


def record(env: Environment, stage: str, key: str, reads: Mapping[str, str], writes: Mapping[str, str], *, charged: bool = True, **more: object) -> None:
    """One recorded result and the charge of its only attempt: one core for SECONDS."""
    config = SMOKE.config_hash(stage)
    day = more.pop("interval", None)
    result = StageResult(stage, key, "smoke", day, reads, writes, more.pop("metrics", {}), 0.0, 1.0, config, finished_at="2026-11-03T00:00:00Z")
    results.record(env, result)
    if charged:
        charge(env, stage, key, SECONDS[stage], "succeeded")


def charge(env: Environment, stage: str, key: str, seconds: float, outcome: str, resources: Resources | None = None) -> None:
    attempt = ledger.Attempt(stage, "smoke", key, None, resources or Resources(cores=1.0, memory_gib=0.0), 1_800_000_000.0)
    delta.append(env, "costs", [ledger.charge_row(env, attempt, attempt.started_at + seconds, outcome)])


def write(
    env: Environment, *, tokens: int = 100_352, corpus: Mapping[str, int] = CORPUS, groups: Sequence = GROUPS, charged: bool = True, forecast: bool = True,
    train_metrics: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """A run of the recipe smoke; the corpus is spread evenly over two days."""
    for n, day in enumerate(DAYS, 1):
        counts = {f"train/{source}": held // 2 for source, held in corpus.items()} | {"held_out/python-code": 999}
        record(env, "clean", f"clean-{n}", {}, {"clean_documents": f"clean_documents@{n}"}, interval=day)
        reads = {"training_documents": f"clean_documents@{n}"}
        record(env, "pack", f"pack-{n}", reads, {"sequences": f"sequences@{n}"}, interval=day, metrics={"tokens_by_source": counts})
    if forecast:
        record(env, "forecast", "forecast-1", {"sequences": "sequences@2"}, {"forecasts": "forecasts@1"})
        _earlier(env, "forecast-1")
    metrics = {"tokens": tokens, **(train_metrics or {})}
    record(env, "train", TRAIN, {"sequences": "sequences@2"}, {"checkpoints": "checkpoints@1"}, metrics=metrics, charged=charged)
    record(env, "evaluate", "evaluate-1", {"checkpoints": "checkpoints@1"}, {"responses": "responses@1", "scores": "scores@1"})
    delta.append(env, "failure_groups", [_group(number, *group) for number, group in enumerate(groups)])
    delta.create_if_missing(env, "failure_groups")  # a stage publishes no rows too
    version = str(delta.latest(env, "failure_groups"))
    record(env, "review", "review-1", {"responses": "responses@1"}, {"verdicts": "verdicts@1", "failure_groups": version})


def _earlier(env: Environment, key: str) -> None:
    """A forecast counts for a training that began after it ended."""
    found = results.find(env, "forecast", key)
    results.record(env, StageResult(**{**found.__dict__, "finished_at": "2026-11-02T00:00:00Z"}))


def _group(number: int, failed: int, sources: Sequence[tuple[str, float]], text: str = "wrong words") -> dict[str, object]:
    nearest = [{"doc_id": "d" * 32, "interval": DAYS[0], "source": s, "uri": f"book:{text}", "licence": "MIT", "cosine": 0.5} for s, _ in sources]
    return {
        "run_key": "review-1", "failure_group": number, "benchmark": f"task {number}", "category": "language", "subset": "", "verdict": "wrong", "n": failed,
        "n_items": 2 * failed, "words": text.split(" "), "item_ids": [f"i{k}" for k in range(failed)], "nearest_documents": json.dumps(nearest),
        "sources": json.dumps([{"source": s, "share": share} for s, share in sources]), "n_sampled": 10, "n_documents": 100,
    }  # fmt: skip
