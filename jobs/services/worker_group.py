"""Who does a training: one process alone, or a group of workers that Ray Train started (ray.py), the first of which keeps the run's folder.

Every worker of a group runs the same training.py; what differs is here. The first one holds the folder's lock, writes metrics, result and
errors, and decides what only one can know (is the run finished, is the money used up); the others hear it.
Change here: what a group does together. Not here: sharding and checkpoints (models/parallel), what a run records (training.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from jobs.config import TrainConfig
from jobs.services.checkpoint_writer import MAX_FAILED, CheckpointFailed, CheckpointWriter, Written


def here() -> Alone:
    """Who trains in this process: it alone, unless whoever started it made it one of a group (torch.distributed is initialised)."""
    import torch.distributed as dist

    return Group() if dist.is_available() and dist.is_initialized() else Alone()


class Alone:
    """One process trains. ``first``: this process keeps the run's folder."""

    first = True

    def model(self, config: TrainConfig) -> tuple[Any, type]:
        """(a new model on its device, the class that trains it)"""
        import torch

        from models.train_loop import Trainer, new_model

        model = new_model(config.model, seed=config.seed, experts_backend=config.experts_backend)
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), Trainer

    def agreed(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns in the first worker."""
        return call()

    def keeping(self, held: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        """``held`` (a lock, a file to write) in the first worker, nothing elsewhere."""
        return held

    def newest(self, folder: Path) -> Path | None:
        """The checkpoint to continue from."""
        from models import checkpoint

        return checkpoint.load_latest_valid(folder)

    def writer(self, folder: Path, keep: int, named: Collection[str]) -> Any:
        """What writes checkpoints while training goes on."""
        return CheckpointWriter(folder, keep, named=named)

    def save_whole(self, writer: Any, trainer: Any) -> None:
        """Write the checkpoint that a model is taken from."""
        writer.save(trainer.contents())


class Group(Alone):
    """This process is one of the workers torch.distributed knows, which train together."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.first = dist.get_rank() == 0

    def model(self, config: TrainConfig) -> tuple[Any, type]:
        from models.parallel.layout import Layout
        from models.parallel.trainer import ParallelTrainer, new_parallel_model

        layout = Layout.of_processes(expert_parallel=config.expert_parallel)
        return new_parallel_model(config.model, layout, seed=config.seed, experts_backend=config.experts_backend), ParallelTrainer

    def agreed(self, call: Callable[[], Any]) -> Any:
        import torch.distributed as dist

        said = [call() if self.first else None]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def keeping(self, held: AbstractContextManager[Any]) -> AbstractContextManager[Any]:
        return held if self.first else open(os.devnull, "w")

    def newest(self, folder: Path) -> Path | None:
        from models.parallel import sharded

        return sharded.latest_valid(folder)

    def writer(self, folder: Path, keep: int, named: Collection[str]) -> Any:
        return GroupWriter(folder, keep, named)

    def save_whole(self, writer: Any, trainer: Any) -> None:
        writer.save_whole(trainer)


class GroupWriter:
    """CheckpointWriter of a group: every worker writes its part. That one failed is noticed when the next is due, by all workers alike."""

    def __init__(self, folder: Path, keep: int, named: Collection[str]) -> None:
        from models.parallel.sharded import BackgroundWriter

        self._writer, self.folder, self.named = BackgroundWriter(folder, keep, named=named), folder, named
        self.wanted = False
        self._in_flight, self._failed, self._step = False, 0, 0
        self._last: Path | None = None
        self._finished: list[Written] = []

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(self, kind: Any, *raised: object) -> None:
        """No thread goes on writing after a training that went on or ended alike on all workers (spikes, divergence). After any other error the
        others may never answer: what is in flight then ends with the process."""
        if kind is None or issubclass(kind, FloatingPointError):
            self.wait()

    def save(self, contents: Mapping[str, Any]) -> None:
        """Copy this worker's part of ``contents`` and return; see BackgroundWriter.start."""
        self.wait()
        self.wanted, self._step, self._in_flight = False, contents["step"], True
        self._writer.start(**contents)

    def save_whole(self, trainer: Any) -> None:
        """Write a checkpoint in one piece (ParallelTrainer.save), now."""
        self.wait()
        self.wanted, self._step = False, trainer.step_number
        self._counted(lambda: trainer.save(self.folder).path)

    def wait(self) -> Path | None:
        """The newest checkpoint; None when the last one failed. Raises CheckpointFailed after ``MAX_FAILED`` in a row."""
        if self._in_flight:
            self._in_flight = False
            self._counted(self._writer.wait)
        return None if self.wanted else self._last

    def finished(self) -> list[Written]:
        """Failed checkpoints since the last call."""
        found, self._finished = self._finished, []
        return found

    def _counted(self, write: Callable[[], Path | None]) -> None:
        from models.parallel.sharded import SaveFailed

        try:
            self._last, self._failed = write(), 0
        except SaveFailed as error:
            self._failed, self.wanted = self._failed + 1, True
            self._finished.append(Written(self._step, 0.0, 0.0, error=str(error)))
            if self._failed >= MAX_FAILED:
                raise CheckpointFailed(
                    f"{MAX_FAILED} checkpoints in a row could not be written to {self.folder} ({error}). Make room or make the folder writable, and "
                    "run the stage again: it continues from its newest checkpoint."
                ) from error
