"""The order in which a training reads its sequences: made from the recipe and the written sequences, counted per source.

Change here: what a mixture needs of the sequences, what is counted. Not here: the order itself (models/data_order.py, models/mixture.py).
"""

from __future__ import annotations

import numpy as np

from jobs.config import TrainConfig
from jobs.services import training_data
from jobs.services.training_data import TrainingData
from models.data_order import DataOrder, MixtureOrder, ShuffledOrder
from models.mixture import SourceSize

SPLIT = "train"


def order_of(config: TrainConfig, data: TrainingData) -> DataOrder:
    """The order of ``config`` on ``data``. Raises ValueError when a mixture asks for what the sequences do not give (see Plan)."""
    if not config.mixture:
        return ShuffledOrder(seed=config.seed, batch_sequences=config.batch_sequences, n_sequences=data.sequences[SPLIT])
    sources, sizes = _sources(data)
    return MixtureOrder(config.mixture, sizes, sources, steps=config.steps, batch_sequences=config.batch_sequences, seed=config.seed)


def _sources(data: TrainingData) -> tuple[np.ndarray, dict[str, SourceSize]]:
    """(source number of every training sequence, size of every source), numbers counting the sorted names that have sequences."""
    pieces = training_data.pieces(data.folder, SPLIT)
    first = np.full(data.sequences[SPLIT], -1, dtype=np.int64)
    first[pieces.sequence[::-1]] = pieces.source[::-1]
    if mixed := len(np.unique(pieces.sequence[pieces.source != first[pieces.sequence]])):
        raise ValueError(
            f"A mixture needs sequences of one source each; {mixed} of {len(first)} hold several. "
            "Set separate_sources=True in the recipe's PackConfig and pack every day again."
        )
    present, numbers, counts = np.unique(first, return_inverse=True, return_counts=True)
    tokens = np.bincount(pieces.source, weights=pieces.tokens, minlength=len(data.sources)).astype(np.int64)
    return numbers, {data.sources[s]: SourceSize(sequences=int(n), tokens=int(tokens[s])) for s, n in zip(present, counts, strict=True)}


def read_per_source(order: DataOrder, data: TrainingData, steps: int) -> dict[str, dict[str, float]]:
    """Per source of the training split: ``tokens`` read in the first ``steps`` steps and the ``epochs`` over its tokens that makes."""
    pieces, reads = training_data.pieces(data.folder, SPLIT), order.reads(steps)
    held, read = (np.zeros(len(data.sources), dtype=np.int64) for _ in range(2))
    np.add.at(held, pieces.source, pieces.tokens)
    np.add.at(read, pieces.source, pieces.tokens * reads[pieces.sequence])
    return {name: {"tokens": int(read[n]), "epochs": float(read[n] / held[n])} for n, name in enumerate(data.sources) if held[n]}
