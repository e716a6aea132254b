"""Who of many similar documents is kept: the decision read literally, and what it costs."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from jobs.stages.deduplicate import _COLLECTED_PAIRS
from jobs.stars import decide

DAY = "2026-11-02"


def table_of(pairs: list[tuple[str, str, str, float]]) -> pa.Table:
    """Pairs whose containment is the other way round, so that deciding by the wrong column shows."""
    names = ["kept_interval", "kept_doc_id", "doc_id", "jaccard", "containment"]
    schema = pa.schema([(name, pa.string()) for name in names[:3]] + [(name, pa.float64()) for name in names[3:]])
    return pa.Table.from_pylist([dict(zip(names, (*pair, 1.7 - pair[3]), strict=True)) for pair in pairs], schema)


def dropped(pairs: list[tuple[str, str, str, float]]) -> dict[str, tuple[str, str, float]]:
    return {r["doc_id"]: (r["kept_interval"], r["kept_doc_id"], r["jaccard"]) for r in decide(table_of(pairs), DAY).to_pylist()}


def test_a_chain_keeps_the_end_that_does_not_resemble_its_start() -> None:
    assert dropped([(DAY, "a", "b", 0.8), (DAY, "b", "c", 0.8)]) == {"b": (DAY, "a", 0.8)}


def test_a_document_of_another_day_wins_over_a_more_similar_one_of_this_day() -> None:
    found = dropped([("2026-11-01", "z", "b", 0.71), (DAY, "a", "b", 0.99)])
    assert found == {"b": ("2026-11-01", "z", 0.71)}


def test_among_kept_partners_the_most_similar_is_named() -> None:
    assert dropped([(DAY, "a", "c", 0.8), (DAY, "b", "c", 0.9)]) == {"c": (DAY, "b", 0.9)}
    assert dropped([(DAY, "b", "c", 0.8), (DAY, "a", "c", 0.8)]) == {"c": (DAY, "a", 0.8)}


def test_the_most_similar_is_found_by_the_measure_asked_for() -> None:
    pairs = table_of([(DAY, "a", "c", 0.8), (DAY, "b", "c", 0.9)])
    assert decide(pairs, DAY).to_pylist() == pairs.slice(1, 1).to_pylist()
    assert decide(pairs, DAY, "containment").to_pylist() == pairs.slice(0, 1).to_pylist()


def test_the_same_id_on_another_day_is_another_document() -> None:
    assert dropped([("2026-11-01", "b", "b", 1.0), (DAY, "b", "c", 0.9)]) == {"b": ("2026-11-01", "b", 1.0)}


def test_nothing_similar_drops_nothing() -> None:
    assert dropped([]) == {}


@pytest.mark.parametrize("seed", range(30))
def test_decisions_equal_going_through_all_documents_in_order(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"d{i:03d}" for i in range(60)]
    pairs = [(DAY, a, b, round(rng.uniform(0.7, 1), 3)) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < 0.04]
    pairs += [("2026-11-01", f"o{i}", rng.choice(names), 0.75) for i in range(4)]
    kept: set[str] = set()
    for name in names:  # the definition, read literally
        if not any(b == name and (day != DAY or a in kept) for day, a, b, _ in pairs):
            kept.add(name)
    rng.shuffle(pairs)
    found = dropped(pairs)
    assert set(names) - set(found) == kept
    assert all(day != DAY or partner in kept for day, partner, _ in found.values())


def test_a_chain_of_twenty_thousand_documents_is_decided_without_recursion() -> None:
    names = [f"{i:06d}" for i in range(20_000)]
    found = dropped([(DAY, a, b, 0.9) for a, b in pairwise(names)][::-1])
    assert len(found) == 10_000


def test_pairs_that_follow_no_order_are_refused() -> None:
    with pytest.raises(RuntimeError, match="not directed by one order"):
        dropped([(DAY, "a", "b", 0.9), (DAY, "b", "c", 0.9), (DAY, "c", "a", 0.9)])


def test_a_pair_costs_less_than_400_bytes_of_this_process() -> None:
    """So that the most pairs it takes (deduplicate._COLLECTED_PAIRS) cost it 200 MB."""
    rng = np.random.default_rng(0)
    hubs, steps = np.divmod(np.unique(rng.integers(0, 60_000 * 10_000, 100_000)), 10_000)  # every pair once
    ids = pa.array([f"{i:032x}" for i in range(70_000)])
    pairs = pa.table({
        "kept_interval": pa.repeat(DAY, len(hubs)), "kept_doc_id": ids.take(pa.array(hubs)), "doc_id": ids.take(pa.array(hubs + steps + 1)),
        "jaccard": rng.random(len(hubs)), "containment": rng.random(len(hubs)),
    })  # fmt: skip
    arrow_before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    found = decide(pairs, DAY)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 20_000 < len(found) < 70_000
    peak = pairs.nbytes + numpy_peak + pa.default_memory_pool().max_memory() - arrow_before
    assert peak / len(hubs) < 400 and 400 * _COLLECTED_PAIRS == 200e6
