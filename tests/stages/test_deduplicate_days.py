"""Days deduplicated in any order, three at once, each twice and interrupted: every day's rows are what the rule, read literally, makes of
the day and of what the days before it kept."""

from __future__ import annotations

import hashlib
import random
import string
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folder_tools import FolderTools
from test_deduplicate import brute_jaccard, deduplicated

from expectations import check
from expectations.tables import TABLES
from jobs import publishing, recipes, run
from jobs.config import DeduplicateConfig
from jobs.contract import CommitConflict, StageResult
from jobs.environment import Environment
from jobs.services import delta, results
from jobs.tools import StageTools

DAYS = ("2026-11-02", "2026-11-03", "2026-11-04")
CONFIG = DeduplicateConfig(bands=40, rows=4)  # a pair of the similarity asked for is missed once in a hundred thousand
RECIPE = replace(recipes.load("smoke"), deduplicate=CONFIG)
Kept = dict[tuple[str, str], str]  # (day, doc_id) -> text


def three_days(seed: int) -> dict[str, dict[str, str]]:
    """Day -> doc_id -> text: families of versions that differ in one to six places (Jaccard .92 .84 .77 .71 .65 .58), copies, short texts."""
    rng = random.Random(seed)
    days: dict[str, dict[str, str]] = {day: {} for day in DAYS}
    for family in range(8):
        base = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(120)]
        for _ in range(rng.randint(1, 9)):
            edited = list(base)
            for place in rng.sample((10, 30, 50, 70, 90, 110), rng.randint(0, 5)):
                edited[place] = f"edit{family}"
            text = " ".join(edited) if rng.random() < 0.7 else "\n".join(edited).upper()
            for day in rng.sample(DAYS, rng.choice((1, 1, 2))):
                name = f"{family} {len(days[day])} {text if rng.random() < 0.3 else rng.random()}"  # some ids come again on another day
                days[day][hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()] = text
    for day in DAYS:
        days[day] |= {f"{day}-short-{i}".ljust(32, "0"): rng.choice(("two words", "Two  words", "three short words")) for i in range(3)}
    return days


def by_the_rule(texts: Mapping[str, str], earlier: Kept, day: str) -> dict[str, tuple[str, str, str]]:
    """Dropped doc_id -> (day and doc_id of the one kept in its place, scope): the rule of the stage's docstring, every pair compared."""

    def normal(text: str) -> str:
        return " ".join(text.lower().split())

    order = sorted(texts, key=lambda doc_id: (-len(texts[doc_id].encode()), doc_id))
    first = {normal(texts[doc_id]): doc_id for doc_id in reversed(order)}  # the survivor of equal texts
    equal = {normal(text): (other_day, doc_id) for (other_day, doc_id), text in sorted(earlier.items(), reverse=True)}
    kept: list[str] = []
    dropped: dict[str, tuple[str, str, str]] = {}
    for doc_id in order:
        text = texts[doc_id]
        survivor = first[normal(text)]
        if normal(text) in equal:
            dropped[doc_id] = (*equal[normal(text)], "exact_other_day")
        elif survivor != doc_id:
            dropped[doc_id] = dropped.get(survivor, (day, survivor, "exact"))
        elif len(text.split()) >= CONFIG.shingle_words:
            others = [(-brute_jaccard(text, other), *name) for name, other in earlier.items()]
            here = [(-brute_jaccard(text, texts[other]), day, other) for other in kept]
            for scope, partners in (("near_other_day", others), ("near", here)):
                similar = [p for p in partners if -p[0] >= CONFIG.min_jaccard]
                if similar and doc_id not in dropped:
                    dropped[doc_id] = (*min(similar)[1:], scope)
        if doc_id not in dropped:
            kept.append(doc_id)
    return dropped


def union(frames: list[Any]) -> Any:
    whole = frames[0] if frames else None
    for frame in frames[1:]:
        whole = whole.union(frame)
    return whole


@pytest.mark.parametrize("order", [DAYS, DAYS[::-1], (DAYS[1], DAYS[2], DAYS[0])], ids=["forward", "backward", "mixed"])
def test_days_in_any_order_follow_the_rule(spark: Any, tmp_path: Any, order: tuple[str, ...]) -> None:
    assert order in set(permutations(DAYS))
    days, done, kept = three_days(seed=1), [], {}
    for day in order:
        others = {name: union([d.frames[name] for d in done]) for name in ("fingerprints", "unique_documents")}
        found = deduplicated(FolderTools(tmp_path / day, spark), days[day], day, others, config=CONFIG)
        expected = by_the_rule(days[day], kept, day)
        assert {r["doc_id"]: (r["kept_interval"], r["kept_doc_id"], r["scope"]) for r in found.duplicates} == expected
        kept |= {(day, doc_id): text for doc_id, text in days[day].items() if doc_id not in expected}
        assert {(day, r["doc_id"]): r["text"] for r in found.unique_documents}.items() <= kept.items()
        done.append(found)
    assert len({r["scope"] for d in done for r in d.duplicates}) == 4, "every way to be dropped occurs"


def cleaned(env: Environment, day: str, texts: Mapping[str, str]) -> None:
    """A day of clean_documents as its stage would have left it."""
    schema = pa.schema([field for field in delta.arrow_schema(TABLES["clean_documents"]) if field.name != "interval"])
    rows = [
        {"doc_id": d, "source": "prose", "uri": d, "licence": None, "text": t, "n_bytes": len(t.encode()), "scores": "{}"} for d, t in sorted(texts.items())
    ]
    folder = env.home / "staged" / day
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-0.parquet")
    version = delta.publish(env, "clean_documents", folder, partition_value=day, metadata={})
    results.record(env, StageResult(
        stage="clean", run_key=f"clean-{day}", recipe="smoke", interval=day, inputs={}, outputs={"clean_documents": str(version)}, metrics={}, cost_usd=0.0,
        wall_seconds=0.0, config_hash=RECIPE.config_hash("clean"), code_revision="x", finished_at="2026-11-05T00:00:00Z",
    ))  # fmt: skip


class Interrupted(BaseException):
    """Stands for a signal: no handler of errors catches it."""


class Interruptions:
    """Ends the first try of every day at a step drawn at random: one while it computes, one between two commits, one before the record."""

    def __init__(self, patch: pytest.MonkeyPatch, luck: random.Random) -> None:
        # A day computes something in steps 1 to 3, commits its tables in 4 to 7 and is recorded in 8.
        steps = luck.sample((luck.randint(1, 3), luck.randint(5, 7), 8), 3)
        self.at = {day: [step] for day, step in zip(DAYS, steps, strict=True)}
        self.steps: dict[str, int] = {}
        self.hit: list[tuple[str, str]] = []
        for owner, name, day_of in (
            (StageTools, "materialise", lambda tools, frame: tools.interval),
            (publishing.delta, "publish", lambda *a, partition_value, **k: partition_value),
            (results, "record", lambda env, result: result.interval),
        ):
            patch.setattr(owner, name, self.stepping(getattr(owner, name), name, day_of))

    def stepping(self, real: Any, name: str, day_of: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            day = day_of(*args, **kwargs)
            self.steps[day] = self.steps.get(day, 0) + 1
            if self.at[day] and self.steps[day] == self.at[day][0]:
                self.at[day].pop(0)
                self.steps[day] = 0
                self.hit.append((day, name))
                raise Interrupted
            return real(*args, **kwargs)

        return step


def test_three_days_at_once_each_twice_and_interrupted_follow_the_rule(spark: Any, env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    days = three_days(seed=2)
    for day in DAYS:
        cleaned(env, day, days[day])
    monkeypatch.setattr(type(spark), "stop", lambda session: None)  # a stage ends the session of its process: here all tests share one
    one_at_a_time, evaluate = threading.Lock(), check.evaluate_files  # Great Expectations keeps its context in a global; a stage has a process of its own

    def evaluated(*args: Any) -> Any:
        with one_at_a_time:
            return evaluate(*args)

    monkeypatch.setattr(check, "evaluate_files", evaluated)
    interruptions = Interruptions(monkeypatch, random.Random(3))
    finished: dict[str, list[StageResult]] = {day: [] for day in DAYS}
    ended: list[str] = []

    def work(day: str) -> None:
        for _ in range(30):
            if len(finished[day]) == 2:
                return
            try:
                finished[day].append(run.run_stage(env, "deduplicate", RECIPE, interval=day))
            except (Interrupted, CommitConflict) as error:
                interruptions.steps[day] = 0
                ended.append(f"{day}: {type(error).__name__} {error}")
            except BaseException as error:
                ended.append(f"{day}: {type(error).__name__} {error}")
                raise

    threads = [threading.Thread(target=work, args=(day,)) for day in DAYS]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(interruptions.hit) == 3
    assert {name for _, name in interruptions.hit} == {"materialise", "publish", "record"}
    assert [len(found) for found in finished.values()] == [2, 2, 2], f"an interrupted attempt keeps later ones from committing: {ended}"
    assert all(again.reused and again.outputs == first.outputs for first, again in finished.values())

    kept: Kept = {}
    for day in sorted(DAYS, key=lambda d: finished[d][0].table("fingerprints").version):  # this commit gave the day its turn
        rows = {
            name: delta.dataset(env, finished[day][0].table(name), where_in=[day]).to_table().to_pylist() for name in TABLES if name in finished[day][0].outputs
        }
        expected = by_the_rule(days[day], kept, day)
        assert {r["doc_id"]: (r["kept_interval"], r["kept_doc_id"], r["scope"]) for r in rows["duplicates"]} == expected
        assert {r["doc_id"] for r in rows["unique_documents"]} == {r["doc_id"] for r in rows["fingerprints"]} == set(days[day]) - set(expected)
        kept |= {(day, doc_id): days[day][doc_id] for doc_id in set(days[day]) - set(expected)}

    other = replace(RECIPE, deduplicate=replace(CONFIG, scope="day"))  # its days are its own, in the same tables
    alone = run.run_stage(env, "deduplicate", other, interval=DAYS[0])
    assert alone.metrics["kept"] == len(days[DAYS[0]]) - len(by_the_rule(days[DAYS[0]], {}, DAYS[0]))
