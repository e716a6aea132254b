"""The rows of ``sequences`` as files a training process maps into memory: written once per run, in one order, read without copying.

Change here: the file form and order of training sequences. Not here: which sequences a step reads (models/data_order.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.contract import MoelineError

if TYPE_CHECKING:
    from models.train_loop import PackedSequences

SPLITS = ("train", "held_out")
_META = "sequences.json"  # written last: its presence means the other files are whole


@dataclass(frozen=True)
class TrainingData:
    """``folder`` holds the files. ``sequences``/``tokens`` count per split (tokens without padding). ``digest``: sha256 over all rows in order.
    ``sources`` and ``intervals``: the names behind the numbers that ``pieces`` and ``keys`` give."""

    folder: str
    seq_len: int
    sequences: dict[str, int]
    tokens: dict[str, int]
    tokenizer_ids: tuple[str, ...]
    sources: tuple[str, ...]
    intervals: tuple[str, ...]
    digest: str


class Ragged(Sequence):
    """Lists of int32 of different lengths, stored flat."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray) -> None:
        self.flat, self.offsets = flat, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


def write(dataset: Any, folder: str | Path) -> TrainingData:
    """Write every row of ``dataset`` (pyarrow Dataset of the table ``sequences``), each split sorted by interval and sequence_id.

    A folder that was written whole before is taken as it is. Raises MoelineError when a split is empty, or when rows differ in
    length or tokenizer (they cannot train one model).
    """
    folder = Path(folder)
    if (folder / _META).is_file():
        return load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    meta: dict[str, Any] = {"seq_len": 0, "sequences": {}, "tokens": {}, "tokenizer_ids": []}
    meta["intervals"], meta["sources"] = _names(dataset)
    for split in SPLITS:
        _write_split(dataset, split, folder, digest, meta)
    if len(meta["tokenizer_ids"]) > 1:
        raise MoelineError(f"The sequences were packed by {len(meta['tokenizer_ids'])} tokenizers {meta['tokenizer_ids']}: pack every day with one tokenizer.")
    unfinished = folder / f".{uuid.uuid4().hex}"
    unfinished.write_text(json.dumps({**meta, "digest": digest.hexdigest()}))
    os.replace(unfinished, folder / _META)
    return load(folder)


def load(folder: str | Path) -> TrainingData:
    """What ``write`` returned for a folder."""
    meta = json.loads((Path(folder) / _META).read_text())
    return TrainingData(folder=str(folder), **{key: tuple(value) if isinstance(value, list) else value for key, value in meta.items()})


def _names(dataset: Any) -> tuple[list[str], list[str]]:
    """All intervals and all sources, sorted."""
    intervals: set[str] = set()
    sources: set[str] = set()
    for batch in dataset.to_batches(columns=["interval", "sources"]):
        intervals.update(batch["interval"].unique().to_pylist())
        sources.update(batch["sources"].flatten().unique().to_pylist())
    return sorted(intervals), sorted(sources)


def _write_split(dataset: Any, split: str, folder: Path, digest: Any, meta: dict[str, Any]) -> None:
    """Two passes over the rows: the keys give every row its place, then each batch goes to its places (never all rows in memory)."""
    import pyarrow.compute as pc

    here = pc.field("split") == split
    keys = dataset.to_table(columns=["interval", "sequence_id"], filter=here).combine_chunks()
    n = len(keys)
    if not n:
        raise MoelineError(f"The corpus has no {split} sequences. Pack more documents (1 % of them, by hash, are held out), or check the table `sequences`.")
    days = keys["interval"].to_pylist()
    order = sorted(range(n), key=lambda row: (days[row], keys["sequence_id"][row].as_py()))
    place = {(days[row], keys["sequence_id"][row].as_py()): position for position, row in enumerate(order)}
    tokens: np.ndarray | None = None
    n_tokens, boundaries, sources = np.zeros(n, np.int32), [np.zeros(0, np.int32)] * n, [np.zeros(0, np.int32)] * n
    for where, rows in _batches(dataset, here, place):
        length = int(rows["tokens"].value_lengths()[0].as_py())
        if tokens is None:
            meta["seq_len"] = meta["seq_len"] or length
            tokens = np.lib.format.open_memmap(folder / f"{split}.tokens.npy", mode="w+", dtype=np.int32, shape=(n, meta["seq_len"]))
        flat = rows["tokens"].flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(rows) * meta["seq_len"]:
            raise MoelineError(f"Sequences of the table differ in length ({meta['seq_len']} and {length}): pack every day with one seq_len.")
        tokens[where] = flat.reshape(len(rows), -1)
        n_tokens[where] = rows["n_tokens"].to_numpy()
        for position, value in zip(where, rows["boundaries"], strict=True):
            boundaries[position] = np.asarray(value.values, dtype=np.int32)
        for position, numbers in zip(where, _numbers(rows["sources"], meta["sources"]), strict=True):
            sources[position] = numbers
        meta["tokenizer_ids"] = sorted({*meta["tokenizer_ids"], *rows["tokenizer_id"].unique().to_pylist()})
    tokens.flush()
    interval = {day: number for number, day in enumerate(meta["intervals"])}
    arrays = {
        "n_tokens": n_tokens, "boundaries": np.concatenate(boundaries), "sources": np.concatenate(sources),
        "offsets": np.cumsum([0, *map(len, boundaries)], dtype=np.int64),
        "keys": np.array([(interval[days[row]], keys["sequence_id"][row].as_py()) for row in order], np.int64),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{split}.{name}.npy", array)
    meta["sequences"][split], meta["tokens"][split] = n, int(n_tokens.sum())
    for part in (tokens, n_tokens, *boundaries):
        digest.update(np.ascontiguousarray(part).data)


def _numbers(lists: Any, names: list[str]) -> list[np.ndarray]:
    """Every name of every list as its place in ``names``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = pc.index_in(lists.flatten(), value_set=pa.array(names, pa.string())).to_numpy(zero_copy_only=False).astype(np.int32)
    return np.split(flat, np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))[:-1])


def _batches(dataset: Any, here: Any, place: dict[tuple[str, int], int]) -> Iterator[tuple[np.ndarray, Any]]:
    """(places, rows) of every batch of one split that is not empty."""
    columns = ["interval", "sequence_id", "tokens", "boundaries", "sources", "n_tokens", "tokenizer_id"]
    for batch in dataset.to_batches(columns=columns, filter=here, batch_size=4096):
        if len(batch):
            keys = zip(batch["interval"].to_pylist(), batch["sequence_id"].to_pylist(), strict=True)
            yield np.asarray([place[key] for key in keys]), batch


def read(folder: str | Path, split: str, *, spread: int | None = None) -> PackedSequences:
    """A split as the trainer takes it; see read_arrays."""
    from models.train_loop import PackedSequences

    return PackedSequences(*read_arrays(folder, split, spread=spread))


def read_arrays(folder: str | Path, split: str, *, spread: int | None = None) -> tuple[np.ndarray, Sequence[np.ndarray], np.ndarray]:
    """(tokens int32 (N, T), document boundaries per sequence, n_tokens (N,)) of a split, mapped from its files and not copied; with
    ``spread``, that many sequences evenly spaced over the split (all if there are fewer)."""
    folder = Path(folder)
    tokens, flat, offsets, n_tokens = (np.load(folder / f"{split}.{part}.npy", mmap_mode="r") for part in ("tokens", "boundaries", "offsets", "n_tokens"))
    boundaries = Ragged(flat, offsets)
    if spread is None or spread >= len(tokens):
        return tokens, boundaries, n_tokens
    rows = np.linspace(0, len(tokens) - 1, num=spread).round().astype(np.int64)
    return tokens[rows], [boundaries[int(row)] for row in rows], n_tokens[rows]


@dataclass(frozen=True)
class Pieces:
    """The pieces of documents in a split's sequences, in order: ``sequence`` and ``source`` numbers and ``tokens`` of each, all (P,)."""

    sequence: np.ndarray
    source: np.ndarray
    tokens: np.ndarray


def pieces(folder: str | Path, split: str) -> Pieces:
    """Which source every token of a split comes from."""
    starts, source, offsets, n_tokens = (np.load(Path(folder) / f"{split}.{part}.npy") for part in ("boundaries", "sources", "offsets", "n_tokens"))
    ends = np.append(starts[1:], 0)
    ends[offsets[1:] - 1] = n_tokens
    return Pieces(np.repeat(np.arange(len(n_tokens)), np.diff(offsets)), source, (ends - starts).astype(np.int64))


def keys(folder: str | Path, split: str) -> np.ndarray:
    """(N, 2) int64, mapped from its file: number of the interval and ``sequence_id`` of every sequence."""
    return np.load(Path(folder) / f"{split}.keys.npy", mmap_mode="r")
