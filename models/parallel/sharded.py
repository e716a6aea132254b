"""Checkpoints of several workers: each writes its parts, in the background, and all become visible at once.

The same folder as one worker's (models/checkpoint.py: manifest with sha256, one rename), with the tensors in ``shard-<worker>-*.safetensors``.
torch.distributed.checkpoint plans, deduplicates and re-shards through its Hugging Face storage; its own metadata file would be pickle, this
storage keeps every part's place in the safetensors header instead. Change here: how parts are written and read. Not here: what a
trainer puts in (trainer.py), the manifest (models/checkpoint.py).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from models import checkpoint
from models.parallel.layout import STALLED

FILES = {"model": 1, "optimizer": 2}  # number in a shard's file name
_MODEL_FILE = "-model-00001-of-"


class BackgroundWriter:
    """Writes one checkpoint at a time in a thread of every worker. Collective: all workers make the same calls."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=STALLED)  # its exchanges must not mix with those of training
        self._stager = DefaultStager(StagingOptions(torch.cuda.is_available(), False, False, False))  # pinned memory on CUDA; nothing shared, copied at once
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, parent: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int) -> None:
        """Copy ``tensors`` (as checkpoint.write takes them, possibly sharded) to the CPU, return, and write ``parent/step-<step>`` meanwhile;
        then prune to ``keep``. Waits for the checkpoint before; raises its error."""
        self.wait()
        files = {name: FILES[stem] for stem, named in tensors.items() for name in named}
        copies = self._stager.stage({name: tensor for named in tensors.values() for name, tensor in named.items()})
        self._thread = threading.Thread(target=self._write, args=(parent, step, copies, files, state, keep), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more; raises the error that kept the last checkpoint from being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, parent: Path, step: int, copies: dict[str, Tensor], files: dict[str, int], state: Mapping[str, Any], keep: int) -> None:
        try:
            first = dist.get_rank(self._group) == 0
            unfinished = Path(agreed(str(checkpoint.begin(parent)) if first else "", self._group))
            dcp.save(copies, storage_writer=HuggingFaceStorageWriter(str(unfinished), files, save_distributed=True), process_group=self._group)
            mine = checkpoint.flushed(sorted(unfinished.glob(f"{checkpoint.SHARD}{dist.get_rank(self._group) + 1:05d}-*")))
            everyones: list[dict[str, Any]] = [{}] * dist.get_world_size(self._group)
            dist.all_gather_object(everyones, mine, group=self._group)
            if first:
                checkpoint.publish(unfinished, step=step, state=state, files={name: entry for part in everyones for name, entry in part.items()})
                checkpoint.prune(parent, keep)
            dist.barrier(self._group)
        except BaseException as error:  # handed to the thread that trains
            self._error = error


def agreed(value: Any, group: dist.ProcessGroup | None = None) -> Any:
    """What the first worker says, on every worker."""
    said = [value]
    dist.broadcast_object_list(said, group=group, group_src=0)
    return said[0]


def latest_valid(parent: Path) -> Path | None:
    """checkpoint.load_latest_valid, decided by the first worker for all."""
    found = agreed(str(checkpoint.load_latest_valid(parent) or "") if dist.get_rank() == 0 else "")
    return Path(found) if found else None


def names(path: Path) -> set[str]:
    """Names of all tensors of a checkpoint, whoever wrote it."""
    return set(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata)


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill ``tensors`` (sharded as they are) with a checkpoint's, read by each worker where its part lies; written by however many workers."""
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)))


def read(path: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors of a sharded checkpoint, whole, in this process alone; as checkpoint.read."""
    reader = HuggingFaceStorageReader(str(path))
    found = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is a single process
        dcp.load(found, storage_reader=reader, no_dist=True)
    model = set()
    for file in path.glob(f"{checkpoint.SHARD}*{_MODEL_FILE}*"):
        model |= _names_in(file)
    return {"model": {n: t for n, t in found.items() if n in model}, "optimizer": {n: t for n, t in found.items() if n not in model}}


def _names_in(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return set(tensors.keys())
