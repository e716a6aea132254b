"""The training order as a file: which sequence every step reads, by interval and sequence_id, readable from any step.

Written whole before training starts, beside the run's checkpoints, which carry the same digest. Change here: the file's form. Not here:
the order (training_order.py).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.contract import MoelineError
from jobs.services import training_data
from jobs.services.training_data import TrainingData
from models.data_order import DataOrder

NAME = "order.parquet"
_GROUP_ROWS = 1 << 16  # at least: what reading one step costs
_ABOUT = b"moeline"


def write(folder: Path, order: DataOrder, data: TrainingData, steps: int, about: Mapping[str, Any]) -> Path:
    """Write ``order.parquet`` into ``folder``: (step, interval, sequence_id) of all ``steps``, in the order they are read; ``about`` is kept
    in the file. A file of the same order is taken as it is. Raises MoelineError when there is one of another order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    group = max(1, -(-_GROUP_ROWS // order.batch_sequences))  # steps in a row group
    told = {**about, "order": order.digest(), "data": data.digest, "seed": order.seed, "batch_sequences": order.batch_sequences, "steps": steps, "group": group}
    file = folder / NAME
    if file.is_file():
        if (before := read_about(file)) != told:
            raise MoelineError(f"{file} holds another order ({before}) than this training reads ({told}). A run's order never changes: start a new run.")
        return file
    keys, days = training_data.keys(data.folder, "train"), pa.array(data.intervals)
    types = {"step": pa.int64(), "interval": pa.dictionary(pa.int32(), pa.string()), "sequence_id": pa.int64()}
    schema = pa.schema(types, metadata={_ABOUT: json.dumps(told, sort_keys=True).encode()})
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{NAME}.{uuid.uuid4().hex}"
    with unfinished.open("wb") as handle:
        with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
            for first in range(0, steps, group):
                last = min(first + group, steps)
                rows = keys[np.concatenate([order.batch(step) for step in range(first, last)])]
                day = pa.DictionaryArray.from_arrays(pa.array(rows[:, 0], pa.int32()), days)
                step = pa.array(np.repeat(np.arange(first, last), order.batch_sequences))
                writer.write_table(pa.table([step, day, pa.array(rows[:, 1])], schema=schema), row_group_size=len(rows))
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(unfinished, file)
    return file


def read_about(file: Path) -> dict[str, Any]:
    """What the file says of itself: table version, seed, mixture, steps, digests."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = json.loads(pq.read_schema(file).metadata[_ABOUT])
    return found


def read(file: Path, from_step: int, steps: int) -> list[dict[str, Any]]:
    """(step, interval, sequence_id) of ``steps`` steps from ``from_step`` (from 0); reads only the row groups that hold them."""
    import pyarrow.parquet as pq

    about = read_about(file)
    if from_step < 0 or steps < 1 or from_step >= about["steps"]:
        raise MoelineError(f"Asked for {steps} steps from step {from_step}; the training has the steps 0 to {about['steps'] - 1}.")
    last = min(from_step + steps, about["steps"])
    groups = range(from_step // about["group"], (last - 1) // about["group"] + 1)
    table = pq.ParquetFile(file).read_row_groups(list(groups))
    skipped = (from_step - groups[0] * about["group"]) * about["batch_sequences"]
    found: list[dict[str, Any]] = table.slice(skipped, (last - from_step) * about["batch_sequences"]).to_pylist()
    return found
