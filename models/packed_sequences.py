"""The data of a training: fixed-length sequences of packed documents, and batches of them as tensors.

Change here: what a batch holds. Not here: which sequences a step reads (data_order.py), where they come from (jobs/services/training_data.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

PADDING = -1  # document id of padding


class PackedSequences:
    """Fixed-length sequences of packed documents.

    ``tokens`` int32 (N, T); ``boundaries``: per sequence the start offsets of its documents, ascending from 0; ``n_tokens`` (N,):
    tokens that are not padding (padding is on the right). Raises ValueError when these do not fit together.
    """

    def __init__(self, tokens: np.ndarray, boundaries: Sequence[Sequence[int] | np.ndarray], n_tokens: np.ndarray) -> None:
        self.tokens, self.boundaries = np.asarray(tokens, dtype=np.int32), boundaries
        self.n_tokens = np.asarray(n_tokens, dtype=np.int64)
        if self.tokens.ndim != 2 or not len(self.tokens) == len(boundaries) == len(self.n_tokens):
            raise ValueError(f"tokens {self.tokens.shape}, {len(boundaries)} boundaries and {len(self.n_tokens)} n_tokens do not describe the same sequences.")
        if len(self.tokens) and not (self.n_tokens.min() >= 0 and self.n_tokens.max() <= self.tokens.shape[1]):
            raise ValueError(f"n_tokens must lie between 0 and the sequence length {self.tokens.shape[1]}.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return self.tokens.shape[1]

    def digest(self) -> str:
        """sha256 (first 16 hex digits) over the shape and up to 1024 evenly spaced sequences: tells two data sets apart cheaply."""
        rows = np.unique(np.linspace(0, max(0, len(self) - 1), num=min(1024, len(self)), dtype=np.int64))
        parts = (str(self.tokens.shape).encode(), self.n_tokens.tobytes(), np.ascontiguousarray(self.tokens[rows]).tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def batch(self, indices: np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """(tokens_BT, document_ids_BT), both int64: ids count documents within a sequence from 0, padding is -1."""
        indices = np.asarray(indices, dtype=np.int64)
        starts = np.zeros((len(indices), self.seq_len), dtype=np.int64)
        for row, index in enumerate(indices):
            offsets = np.asarray(self.boundaries[index], dtype=np.int64)
            starts[row, offsets[(offsets > 0) & (offsets < self.seq_len)]] = 1
        ids = starts.cumsum(1)
        ids[np.arange(self.seq_len) >= self.n_tokens[indices, None]] = PADDING
        return torch.from_numpy(self.tokens[indices].astype(np.int64)), torch.from_numpy(ids)
