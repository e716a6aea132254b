"""Checkpoints of several workers: each writes its parts, in the background, and all become visible at once.

The same folder as one worker's (models/checkpoint.py: manifest with sha256, one rename), with the tensors in ``shard-<worker>-*.safetensors``.
torch.distributed.checkpoint plans, deduplicates and re-shards through its Hugging Face storage; its own metadata file would be pickle, this
storage keeps every part's place in the safetensors header instead. Change here: how parts are written and read. Not here: what a
trainer puts in (trainer.py), the manifest (models/checkpoint.py).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from models import checkpoint
from models.parallel.layout import STALLED

FILES = {"model": 1, "optimizer": 2}  # number in a shard's file name
_MODEL_FILE = "-model-00001-of-"


class SaveFailed(OSError):
    """Some worker could not write its part; every worker raises it, and there is no such checkpoint."""


class BackgroundWriter:
    """Writes one checkpoint at a time into ``parent`` in a thread of every worker, then keeps the newest ``keep`` and those in ``named``.

    Collective: all workers make the same calls.
    """

    def __init__(self, parent: Path, keep: int, *, named: Collection[str] = ()) -> None:
        self.parent, self.keep, self.named = parent, keep, named
        self._group = dist.new_group(backend="gloo", timeout=STALLED)  # its exchanges must not mix with those of training
        self._stager = DefaultStager(StagingOptions(torch.cuda.is_available(), False, False, False))  # pinned memory on CUDA; nothing shared, copied at once
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._newest: Path | None = None

    def start(self, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copy ``tensors`` (as checkpoint.write takes them, sharded or not) to the CPU and return; the thread writes ``step-<step>``. Waits for
        the checkpoint before it; raises its error."""
        self.wait()
        files = {name: FILES[stem] for stem, named in tensors.items() for name in named}
        copies = self._stager.stage({name: tensor for named in tensors.values() for name, tensor in named.items()})
        self._thread = threading.Thread(target=self._run, args=(step, copies, files, state), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> Path | None:
        """Return when nothing is being written any more: the newest checkpoint of this writer. Raises SaveFailed when the last one is not there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._newest

    def _run(self, *args: Any) -> None:
        try:
            self._newest = self._write(*args)
        except BaseException as error:  # handed to the thread that trains
            self._error = error

    def _write(self, step: int, copies: dict[str, Tensor], files: dict[str, int], state: Mapping[str, Any]) -> Path:
        rank, unfinished = dist.get_rank(self._group), Path(by_first(lambda: str(checkpoint.begin(self.parent)), self._group))

        def own_part() -> dict[str, dict[str, Any]]:
            return checkpoint.flushed(sorted(unfinished.glob(f"{checkpoint.SHARD}{rank + 1:05d}-*")))

        try:
            dcp.save(copies, storage_writer=HuggingFaceStorageWriter(str(unfinished), files, save_distributed=True), process_group=self._group)
        except CheckpointException as error:  # raised on every worker
            raise SaveFailed(f"checkpoint {step} could not be written: {next(iter(error.failures.values()))[0]}") from error
        listed = {name: entry for part in everywhere(own_part, self._group) for name, entry in part.items()}

        def publish() -> str:
            path, _ = checkpoint.publish(unfinished, step=step, state=state, files=listed)
            checkpoint.prune(self.parent, self.keep, named=self.named)
            return str(path)

        return Path(by_first(publish, self._group))


def everywhere(call: Callable[[], Any], group: dist.ProcessGroup | None = None) -> list[Any]:
    """What ``call`` returned on every worker, in their order. When it raised on any, all raise SaveFailed: nobody waits for a worker that gave up."""
    try:
        mine: tuple[Any, str] = (call(), "")
    except Exception as error:
        mine = (None, f"{type(error).__name__}: {error}")
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    for rank, (_, error) in enumerate(found):
        if error:
            raise SaveFailed(f"worker {rank}: {error}")
    return [value for value, _ in found]


def by_first(call: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """What ``call`` returned on the first worker, which alone makes it; raises SaveFailed everywhere when it raised."""
    return everywhere(call if dist.get_rank(group) == 0 else lambda: None, group)[0]


def latest_valid(parent: Path) -> Path | None:
    """checkpoint.load_latest_valid, decided by the first worker for all."""
    found = by_first(lambda: str(checkpoint.load_latest_valid(parent) or ""))
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
