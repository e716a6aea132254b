"""A model of a few thousand parameters and sequences that count upwards, for the tests of the training loop."""

from __future__ import annotations

import numpy as np

from models.config import ModelConfig
from models.train_loop import LoopConfig, PackedSequences, Trainer, new_model

MODEL = ModelConfig(d_model=32, n_heads=2, n_kv_heads=1, n_layers=2, ffn_hidden=32, vocab_size=64, max_seq_len=32)
LOOP = LoopConfig(steps=12, batch_sequences=4, learning_rate=3e-3)


def sequences(n: int = 20, seed: int = 0, padding: int = 3) -> PackedSequences:
    """Two documents a sequence, each counting up from a random token: the next token is predictable within a document only."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, 64, size=(n, 2))
    count = np.arange(16)
    tokens = np.concatenate([(starts[:, :1] + count) % 64, (starts[:, 1:] + count) % 64], axis=1)
    return PackedSequences(tokens, [[0, 16]] * n, np.full(n, 32 - padding))


def trainer(loop: LoopConfig = LOOP, data: PackedSequences | None = None) -> Trainer:
    return Trainer(new_model(MODEL, seed=1), loop, sequences() if data is None else data)
