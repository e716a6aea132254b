"""Failures that belong together are found together, whatever their order; nothing is split without a reason."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from models.gauntlet.failure_groups import closeness, group


def texts(*topics: int, words: int = 30, seed: int = 0) -> sparse.csr_matrix:
    """A row per topic: most words of the topic's own vocabulary, rows of length 1; topic -1 knows no word."""
    draw = np.random.default_rng(seed)
    rows = np.zeros((len(topics), 400))
    for row, topic in enumerate(topics):
        if topic >= 0:
            rows[row, topic * 100 + draw.integers(0, 40, size=words)] = 1.0
            rows[row, 300 + draw.integers(0, 100, size=3)] = 1.0
    return sparse.csr_matrix(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def test_two_topics_of_one_kind_are_two_groups():
    topics = [0] * 30 + [1] * 20
    labels = group([("physics", "wrong")] * 50, texts(*topics))
    assert labels == [0] * 30 + [1] * 20


def test_one_topic_stays_one_group_and_texts_without_words_too():
    assert set(group([("", "wrong")] * 60, texts(*[0] * 60))) == {0}
    assert set(group([("", "wrong")] * 60, texts(*[-1] * 60))) == {0}


def test_subset_and_verdict_split_before_text_and_small_parts_are_put_together():
    kinds = [("a", "wrong")] * 12 + [("a", "near_miss")] * 8 + [("b", "wrong")] * 2 + [("c", "near_miss")] * 3
    assert group(kinds, texts(*[0] * 25)) == [0] * 12 + [1] * 8 + [2] * 5


@pytest.mark.parametrize("seed", range(3))
def test_the_same_failures_in_another_order_are_the_same_groups(seed):
    topics = [0] * 40 + [1] * 25 + [2] * 17
    vectors = texts(*topics, seed=seed)
    order = np.random.default_rng(seed).permutation(len(topics))
    straight = group([("s", "wrong")] * len(topics), vectors)
    shuffled = group([("s", "wrong")] * len(topics), vectors[order])
    assert [straight[i] for i in order] == shuffled and len(set(straight)) == 3


def test_closeness_is_the_cosine_to_the_middle():
    rows = sparse.csr_matrix(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    middle = np.array([1.6, 1.8]) / np.hypot(1.6, 1.8)
    np.testing.assert_allclose(closeness(rows), rows.toarray() @ middle)
