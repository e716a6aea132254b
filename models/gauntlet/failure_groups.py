"""Failure groups: wrong answers of one task that belong together, by subset, verdict and text. Pure and deterministic.

First by what is known (subset or source, verdict), then each large enough part by its text: k-means over the leading singular vectors
of its TF-IDF rows, kept only where it finds texts that are clearly more alike than the part as a whole.
Change here: what makes a group. Not here: the vectors (jobs/stages/review.py), what to do about a group (jobs/proposals.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

MIN_GROUP = 5  # failures; smaller parts of a task are put together
ITEMS_PER_CLUSTER = 15
MAX_CLUSTERS = 4  # of one part; a person reads them
DIMENSIONS = 16
MIN_GAIN = 0.05  # cosine to the own group's middle that one group more must add
SEEDS = (1, 2, 3, 4, 5)  # of k-means; the best of them counts


def group(kinds: Sequence[tuple[str, str]], vectors: Any) -> list[int]:
    """Group number of every failure of one task, 0 the largest. ``kinds``: (subset, verdict); ``vectors``: sparse [n, features], rows of length 1 or 0."""
    parts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, kind in enumerate(kinds):
        parts[kind].append(row)
    small = [rows for rows in parts.values() if len(rows) < MIN_GROUP]
    groups = [rows for kind, rows in sorted(parts.items()) if len(rows) >= MIN_GROUP]
    found = [cluster for rows in groups for cluster in _by_text(rows, vectors[rows])]
    if small:
        found.append(sorted(row for rows in small for row in rows))
    labels = [0] * len(kinds)
    for number, rows in enumerate(sorted(found, key=lambda rows: (-len(rows), rows))):
        for row in rows:
            labels[row] = number
    return labels


def _by_text(rows: list[int], vectors: Any) -> list[list[int]]:
    """``rows`` split by text, or whole where a split explains little."""
    import numpy as np
    from scipy.cluster.vq import kmeans2

    known = np.flatnonzero(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel() > 0)  # texts without a known word have no direction
    most = min(MAX_CLUSTERS, len(known) // ITEMS_PER_CLUSTER)
    if most < 2:
        return [rows]
    alike = _cohesion(vectors[known])
    if alike > 1 - MIN_GAIN:
        return [rows]
    points, found = _leading(vectors[known]), [known]
    for k in range(2, most + 1):
        tries = [kmeans2(points, k, minit="++", seed=seed, iter=50)[1] for seed in SEEDS]
        clusterings = [[known[labels == label] for label in range(k) if (labels == label).any()] for labels in tries]
        reached, clusters = max(((_mean_cohesion(c, vectors), c) for c in clusterings), key=lambda one: one[0])
        if reached < alike + MIN_GAIN or min(map(len, clusters)) < MIN_GROUP:
            break
        alike, found = reached, clusters
    split = [[rows[i] for i in cluster] for cluster in found]
    rest = sorted(set(rows) - {row for cluster in split for row in cluster})
    return [*split, rest] if rest and len(split) > 1 else split if not rest else [rows]


def _mean_cohesion(clusters: list[Any], vectors: Any) -> float:
    return sum(_cohesion(vectors[c]) * len(c) for c in clusters) / sum(map(len, clusters))


def _leading(vectors: Any) -> Any:
    """Rows on their leading singular vectors, scaled to length 1: [n, <= DIMENSIONS]."""
    import numpy as np
    from scipy.sparse.linalg import svds

    k = min(DIMENSIONS, *(size - 1 for size in vectors.shape))
    start = np.ones(min(vectors.shape))  # ARPACK begins at a random vector otherwise
    left, values, _ = svds(vectors.astype(np.float64), k=k, v0=start)
    points = left * values
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def _cohesion(vectors: Any) -> float:
    """Mean cosine of rows to their middle."""
    return float(closeness(vectors).mean())


def closeness(vectors: Any) -> Any:
    """Cosine of every row to the middle of all, [n]."""
    import numpy as np

    middle = np.asarray(vectors.mean(axis=0)).ravel()
    return np.asarray(vectors @ (middle / max(float(np.linalg.norm(middle)), 1e-12))).ravel()
