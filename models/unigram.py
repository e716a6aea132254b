"""The unigram model: what a language model must beat to have learned anything beyond how often tokens occur. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def predicted_tokens(tokens: np.ndarray, boundaries: Sequence[np.ndarray], n_tokens: np.ndarray) -> np.ndarray:
    """The tokens of packed sequences that a next-token loss predicts, (M,): every real token that is not the first of its document
    piece. ``tokens`` (N, T), ``boundaries`` start offsets per sequence, ``n_tokens`` (N,) tokens that are not padding."""
    wanted = np.arange(tokens.shape[1])[None, :] < np.asarray(n_tokens)[:, None]
    wanted[:, 0] = False
    for row, starts in enumerate(boundaries):
        wanted[row, np.asarray(starts)[np.asarray(starts) < tokens.shape[1]]] = False
    return np.asarray(tokens)[wanted]


def unigram_loss(counts: np.ndarray, targets: np.ndarray) -> float:
    """Cross entropy in nats per token of ``targets`` under add-one (Laplace) smoothed ``counts`` (vocabulary,) of the training tokens.

    Raises ValueError without targets.
    """
    if not len(targets):
        raise ValueError("There is no token to predict.")
    probabilities = (counts + 1.0) / (counts.sum() + len(counts))
    return float(-np.log(probabilities[targets]).mean())
