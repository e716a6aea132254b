"""Best-fit packing against brute force: the rule is kept at every item, nothing that fits is cut, and little is left empty."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.best_fit import best_fit
from jobs.stages.pack import END_OF_TEXT_ID, BestFitPacker, Packer


def written_out(lengths: list[int], capacity: int) -> list[list[int]]:
    """The rule by looking at every bin: longest first, into the bin with the least room that is enough, the last changed among equals."""
    bins: list[dict[str, Any]] = []
    for now, item in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [b for b in bins if b["room"] >= lengths[item]]
        if fitting:
            chosen = min(fitting, key=lambda b: (b["room"], -b["changed"]))
        else:
            bins.append(chosen := {"room": capacity, "items": []})
        chosen.update(room=chosen["room"] - lengths[item], items=[*chosen["items"], item], changed=now)
    return [sorted(b["items"]) for b in bins]


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """The optimum, by trying every placement."""
    best = len(lengths)

    def place(rest: list[int], rooms: tuple[int, ...]) -> None:
        nonlocal best
        if len(rooms) >= best:
            return
        if not rest:
            best = len(rooms)
            return
        for room in set(rooms):
            if room >= rest[0]:
                left = list(rooms)
                left[left.index(room)] -= rest[0]
                place(rest[1:], tuple(sorted(left)))
        place(rest[1:], tuple(sorted((*rooms, capacity - rest[0]))))

    place(sorted(lengths, reverse=True), ())
    return best


def first_fit(lengths: list[int], capacity: int) -> int:
    rooms: list[int] = []
    for length in lengths:
        place = next((i for i, room in enumerate(rooms) if room >= length), None)
        if place is None:
            rooms.append(capacity - length)
        else:
            rooms[place] -= length
    return len(rooms)


@given(st.integers(1, 40).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_bins_are_those_of_the_rule_written_out(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    assert best_fit(np.array(lengths, np.int64), capacity) == written_out(lengths, capacity)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_it_needs_at_most_eleven_ninths_of_the_fewest_bins(lengths: list[int]) -> None:
    """Dosa 2007 for first-fit decreasing; best-fit decreasing keeps the same bound (Johnson et al. 1974)."""
    assert len(best_fit(np.array(lengths), 20)) <= 11 / 9 * fewest_bins(lengths, 20) + 6 / 9


def test_it_wastes_less_than_first_fit_in_the_order_of_arrival() -> None:
    rng = random.Random(1)
    for _ in range(20):
        lengths = [min(256, int(rng.lognormvariate(4, 1)) + 1) for _ in range(500)]
        ours, theirs = len(best_fit(np.array(lengths), 256)), first_fit(lengths, 256)
        assert -(-sum(lengths) // 256) <= ours <= theirs
    assert ours < theirs


@pytest.mark.parametrize("bad", [[0], [5, 11]])
def test_items_that_do_not_fit_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="do not all fit in bins of 1 to 10"):
        best_fit(np.array(bad), 10)


def test_two_hundred_thousand_documents_leave_less_than_one_in_a_hundred_tokens_empty() -> None:
    lengths = np.minimum(2048, np.random.default_rng(0).lognormal(5.5, 1.2, 200_000).astype(np.int64) + 1)
    assert 1 - lengths.sum() / (len(best_fit(lengths, 2048)) * 2048) < 0.01


def packed(packer: Any, documents: list[list[int]]) -> list[dict[str, Any]]:
    found = [s for number, tokens in enumerate(documents) for s in packer.add(f"d{number}", "s", np.array(tokens, np.int32))]
    return found + list(packer.flush())


@settings(max_examples=60, deadline=None)
@given(seq_len=st.integers(2, 16), sizes=st.lists(st.integers(0, 40), max_size=30))
def test_every_document_is_read_back_and_none_that_fits_is_cut(seq_len: int, sizes: list[int]) -> None:
    rng = random.Random(0)
    documents = [[rng.randint(2, 99) for _ in range(size)] for size in sizes]
    pieces: dict[str, list[list[int]]] = {}
    for sequence in packed(BestFitPacker(seq_len), documents):
        ends = [*sequence["boundaries"][1:], sequence["n_tokens"]]
        assert len(sequence["tokens"]) == seq_len and sequence["boundaries"][0] == 0
        for doc_id, start, end in zip(sequence["doc_ids"], sequence["boundaries"], ends, strict=True):
            pieces.setdefault(doc_id, []).append(sequence["tokens"][start:end].tolist())
    assert {doc_id: list(itertools.chain(*found)) for doc_id, found in pieces.items()} == {f"d{n}": [*t, END_OF_TEXT_ID] for n, t in enumerate(documents)}
    assert all(len(found) == -(-sum(map(len, found)) // seq_len) for found in pieces.values()), "a document is cut only where it must be"


def test_it_cuts_fewer_documents_than_concatenating_for_little_padding() -> None:
    rng = random.Random(2)
    documents = [[5] * min(600, int(rng.lognormvariate(4, 1))) for _ in range(2000)]
    cut = {}
    for packer in (Packer(256), BestFitPacker(256)):
        sequences = packed(packer, documents)
        ends = [s["doc_ids"][-1] for s in sequences if s["n_tokens"] == 256 and s["tokens"][-1] != END_OF_TEXT_ID]
        cut[type(packer)] = len(set(ends))
        assert 1 - sum(len(d) + 1 for d in documents) / (256 * len(sequences)) < 0.01
    assert cut[BestFitPacker] == sum(len(d) + 1 > 256 for d in documents) < cut[Packer] / 2
