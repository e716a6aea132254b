"""Token overlap with training, against a search by brute force."""

from __future__ import annotations

import numpy as np

from models.gauntlet.overlap import WINDOW, left_in_training, overlapping_items, window_hashes


def brute_force(items, training):
    windows = {tuple(row[i : i + WINDOW]) for block in training for row in block.tolist() for i in range(len(row) - WINDOW + 1)}
    return {name for name, tokens in items.items() if any(tuple(tokens[i : i + WINDOW]) in windows for i in range(len(tokens) - WINDOW + 1))}


def test_planted_overlaps_are_found_and_nothing_else():
    rng = np.random.default_rng(4)
    training = [rng.integers(0, 50, (200, 64)).astype(np.int32) for _ in range(3)]
    items = {f"clean{i}": rng.integers(0, 50, 40).tolist() for i in range(200)}
    items["whole"] = training[1][7, 10:60].tolist()
    items["exactly one window"] = [*rng.integers(0, 50, 5).tolist(), *training[2][199, 64 - WINDOW :].tolist(), 1, 2, 3]
    items["one token short"] = training[0][0, : WINDOW - 1].tolist()
    items["across two rows"] = [*training[0][0, -WINDOW // 2 :].tolist(), *training[0][1, : WINDOW // 2].tolist()]
    found = overlapping_items(items, iter(training))
    assert found == brute_force(items, training) == {"whole", "exactly one window"}


def test_repetitive_text_is_compared_exactly():
    training = [np.array([[1, 2] * 32, [3] * 64], dtype=np.int32)]
    items = {"same": [1, 2] * 15, "shifted": [2, 1] * 15, "other": [1, 3] * 15, "constant": [3] * WINDOW, "short": [3] * (WINDOW - 1), "empty": []}
    assert overlapping_items(items, training) == brute_force(items, training) == {"same", "shifted", "constant"}


def test_hashes_do_not_depend_on_where_a_window_stands():
    rows = np.arange(40)[None]
    assert (window_hashes(rows[:, 5:25])[0] == window_hashes(rows)[0, 5 : 5 + 20 - WINDOW + 1]).all()
    assert window_hashes(np.zeros((2, WINDOW - 1), dtype=np.int32)).shape == (2, 0)


def test_without_items_or_training_nothing_is_found():
    assert overlapping_items({}, [np.zeros((1, 64), dtype=np.int32)]) == set()
    assert overlapping_items({"a": list(range(30))}, []) == set()


def of_a_day(item, rule, left, n=10):
    return {"benchmark": "quiz", "item_id": item, "rule": rule, "left": left, "n_ngrams": n, "threshold": 0.7 if rule == "share" else 0.0}


def test_words_of_an_item_are_added_up_over_days_without_counting_any_twice():
    rows = [
        of_a_day("halves", "share", [0, 1, 2, 3]), of_a_day("halves", "share", [4, 5, 6]),
        of_a_day("same half", "share", [0, 1, 2, 3]), of_a_day("same half", "share", [0, 1, 2, 3]), of_a_day("same half", "ngram", [5]),
        of_a_day("cut", "ngram", []), of_a_day("cut", "share", [0]),
    ]  # fmt: skip
    expected = {"halves": {"share": True}, "same half": {"share": False, "ngram": True}, "cut": {"ngram": False, "share": False}}
    for order in (rows, rows[::-1]):
        assert left_in_training(order) == {("quiz", item): verdict for item, verdict in expected.items()}
    assert left_in_training([]) == {}
