"""The default suite: which benchmarks a model of ours answers, from the stored own-data items and a seed, and what it scores on them.

    benchmarks = suite.load(rows, own_data_tasks=..., symbolic_tasks=..., items_per_task=400, seed=1234)
    scores, responses = suite.evaluate(benchmarks, scorer)
    average = averages.overall(scores, expected=[b.task.label for b in benchmarks])

Change here: categories, how items are capped. Not here: how items are made (own_data.py, symbolic.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from models.gauntlet import averages, code_evaluation, own_data, symbolic
from models.gauntlet.scoring import Response, Scorer, score
from models.gauntlet.tasks import CODE, FIXED, MULTIPLE_CHOICE, Benchmark, Item, Task, check_row

CATEGORIES = {
    "next_line": "text_understanding", "docstring": "text_understanding", "identifier": "code_understanding",
    "brackets": "symbolic_problem_solving", "arithmetic": "symbolic_problem_solving",
}  # fmt: skip
MIN_ITEMS = 20  # below this a standard error says nothing (0.1 at an accuracy of 0.3)


def task(label: str) -> Task:
    """Our tasks: zero-shot multiple choice by mutual information; options carry their own white space, so nothing is stripped or added."""
    return Task(
        label=label, kind=MULTIPLE_CHOICE, category=CATEGORIES[label], continuation_delimiter="", strip_dataset=False, prefix_space=False,
        random_baseline=1 / own_data.CHOICES, unconditional_context="\n", mode=FIXED,
    )  # fmt: skip


def capped(items: Sequence[Item], limit: int, seed: int) -> tuple[Item, ...]:
    """At most ``limit`` items, ordered by id: those first in hash order, as many of each gold position as of any other."""
    by_gold: dict[int, list[Item]] = {}
    for item in sorted(items, key=lambda i: own_data.stable_order(i.item_id, seed)):
        by_gold.setdefault(item.row["gold"], []).append(item)
    ranked = sorted((rank, gold, item.item_id, item) for gold, members in by_gold.items() for rank, item in enumerate(members))
    return tuple(sorted((item for *_, item in ranked[:limit]), key=lambda i: i.item_id))


def load(
    benchmark_items: Iterable[Mapping[str, Any]], *, own_data_tasks: Sequence[str], symbolic_tasks: Sequence[str], items_per_task: int, seed: int
) -> list[Benchmark]:
    """The suite's benchmarks. ``benchmark_items``: rows with benchmark, item_id and item (JSON), as in the table of that name.

    Raises ValueError naming the task that has fewer than MIN_ITEMS items, or is unknown.
    """
    if unknown := [t for t in (*own_data_tasks, *symbolic_tasks) if t not in CATEGORIES]:
        raise ValueError(f"Unknown tasks {unknown} in the suite. Own-data tasks: {', '.join(own_data.TASKS)}; symbolic: {', '.join(symbolic.TASKS)}.")
    rows: dict[str, dict[str, Item]] = {label: {} for label in own_data_tasks}
    for row in benchmark_items:
        if row["benchmark"] in rows:
            where = f"item {row['item_id']} of table benchmark_items"
            content = check_row(task(row["benchmark"]), json.loads(row["item"]), where)
            rows[row["benchmark"]][row["item_id"]] = Item(row["item_id"], content)
    benchmarks = []
    for label, items in rows.items():
        if len(items) < MIN_ITEMS:
            raise ValueError(
                f"Own-data task {label} has {len(items)} items, at least {MIN_ITEMS} are needed. Prepare more days of data, or take the task out of the suite."
            )
        benchmarks.append(Benchmark(task(label), capped(list(items.values()), items_per_task, seed)))
    return benchmarks + [Benchmark(task(label), tuple(symbolic.make_items(label, n=items_per_task, seed=seed))) for label in symbolic_tasks]


def evaluate(
    benchmarks: Sequence[Benchmark], scorer: Scorer, *, keep: Mapping[str, Collection[str]] | None = None,
    contaminated: Mapping[str, Collection[str]] | None = None, progress: Callable[[float, float, str], None] | None = None,
) -> tuple[list[averages.Score], dict[str, list[Response]]]:  # fmt: skip
    """(one score per benchmark, responses by label). ``keep`` and ``contaminated`` map labels to item ids (absent: all, none).

    Each task is asked and judged in its own ``mode``. ``progress`` gets (benchmarks done, all, text).
    """
    scores, responses = [], {}
    for done, benchmark in enumerate(benchmarks):
        label = benchmark.task.label
        kept = None if keep is None or label not in keep else set(keep[label])
        items = [item for item in benchmark.items if kept is None or item.item_id in kept]

        def report(part: int, total: int, done: int = done, label: str = label) -> None:
            if progress is not None:
                progress(done + part / max(1, total), len(benchmarks), label)

        ask = code_evaluation.score if benchmark.task.kind == CODE else score
        responses[label] = ask(benchmark, scorer, keep=None if kept is None else kept.__contains__, progress=report)
        dirty = (contaminated or {}).get(label, ())
        scores.append(averages.score_benchmark(benchmark.task, items, responses[label], contaminated=dirty))
    return scores, responses
