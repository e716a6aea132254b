"""Checkpoints off the critical path: copied to host memory between two steps, written by a thread while training goes on.

One is in flight at a time, so the host holds one copy; its memory is reused by the next. A checkpoint is published whole
(models/checkpoint.py), then older ones are removed. Change here: when training waits for a checkpoint, what a failed one means.
Not here: what a checkpoint holds (models/train_loop.py), its files (models/checkpoint.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError

MAX_FAILED = 3  # checkpoints that could not be written in a row, after which training on would only waste money


class CheckpointFailed(MoelineError):
    """The folder of a training takes no more checkpoints."""


@dataclass(frozen=True)
class Written:
    """One checkpoint: ``seconds`` it took to write, ``stalled`` seconds of these that training waited. ``error``: why it is not there, or empty."""

    step: int
    seconds: float
    stalled: float
    path: Path | None = None
    error: str = ""


class CheckpointWriter:
    """Writes the checkpoints of the training in ``folder`` and keeps the newest ``keep``, and those in ``named``.

    A full or read-only disk costs a checkpoint, not the training: it is told, and ``wanted`` asks for another until ``MAX_FAILED`` in a row
    have failed. Anything else that goes wrong in the thread is raised by the next call.
    """

    def __init__(self, folder: Path, keep: int, *, named: Collection[str] = ()) -> None:
        self.folder, self.keep, self.named = folder, keep, named
        self.seconds = 0.0  # the last one took so long
        self.wanted = False  # the last one failed: try again
        self._host: dict[tuple[str, str], Any] = {}
        self._thread: threading.Thread | None = None
        self._finished: list[Written] = []
        self._crash: BaseException | None = None
        self._failed, self._last = 0, None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        """Whatever ended the training, no thread goes on writing to its folder."""
        if self._thread is not None:
            self._thread.join()

    def save(self, contents: Mapping[str, Any]) -> None:
        """Copy ``contents`` (Trainer.contents) and return; the thread writes the copy. Waits for the checkpoint before it, which may raise."""
        began = time.perf_counter()
        self.wait()
        copied = {**contents, "tensors": self._copied(contents["tensors"])}
        self.wanted = False
        self._thread = threading.Thread(target=self._write, args=(copied, time.perf_counter() - began), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> Path | None:
        """Wait until nothing is in flight; the newest checkpoint written, or None when there is none. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()
        return self._last

    def finished(self) -> list[Written]:
        """Checkpoints that ended since the last call, failed ones too. Raises what went wrong in the thread."""
        found, self._finished = self._finished, []
        self._raise()
        return found

    def _copied(self, tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """All tensors in host memory of our own (pinned for a GPU, whose copies then overlap)."""
        import torch

        on_gpu = False
        for stem, named in tensors.items():
            for name, tensor in named.items():
                source, key = tensor.detach(), (stem, name)
                if key not in self._host or self._host[key].shape != source.shape:
                    self._host[key] = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
                self._host[key].copy_(source, non_blocking=True)
                on_gpu = on_gpu or source.is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        return {stem: {name: self._host[stem, name] for name in named} for stem, named in tensors.items()}

    def _write(self, contents: Mapping[str, Any], stalled: float) -> None:
        from models import checkpoint

        began = time.perf_counter()
        try:
            path, _ = checkpoint.write(self.folder, **contents)
            checkpoint.prune(self.folder, self.keep, named=self.named)
            self._failed, self._last = 0, path
            self.seconds = stalled + time.perf_counter() - began
            self._finished.append(Written(contents["step"], self.seconds, stalled, path))
        except BaseException as error:  # handed to the training's thread
            self._failure(contents["step"], error, stalled + time.perf_counter() - began, stalled)

    def _failure(self, step: int, error: BaseException, seconds: float, stalled: float) -> None:
        if not is_disk_error(error):
            self._crash = error
            return
        self._failed += 1
        self._finished.append(Written(step, seconds, stalled, error=str(error)))
        self.wanted = True
        if self._failed >= MAX_FAILED:
            older = self._last.name if self._last else "none of this attempt's"
            self._crash = CheckpointFailed(
                f"{MAX_FAILED} checkpoints in a row could not be written to {self.folder} ({error}); the last whole one is {older}. "
                "Make room or make the folder writable, and run the stage again: it continues from its newest checkpoint."
            )

    def _raise(self) -> None:
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise crash


def is_disk_error(error: BaseException) -> bool:
    """Whether the file system refused: OSError, and what safetensors makes of one."""
    return isinstance(error, OSError) or (type(error).__name__ == "SafetensorError" and "I/O error" in str(error))


def told(written: Written, tell: Callable[[dict[str, Any]], None]) -> None:
    """One line for the run's metrics."""
    line = {"event": "checkpoint", "at": time.time(), "step": written.step, "seconds": written.seconds, "stalled_seconds": written.stalled}
    tell({**line, "error": written.error} if written.error else line)
