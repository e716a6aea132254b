"""Checkpoint folders that are either whole and verified or not there: safetensors and JSON, never pickle.

A checkpoint is a folder ``step-<step>`` holding ``*.safetensors``, ``state.json`` and ``manifest.json`` (sha256 and size of every
file). It is written under another name in the same parent, flushed to disk, and renamed whole; one process writes to a parent.
Change here: how checkpoints are stored. Not here: what a trainer puts in (train_loop.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

MANIFEST, STATE = "manifest.json", "state.json"
SHARD = "shard-"  # how the names of files that hold one worker's parts start
_PREFIX, _UNFINISHED = "step-", ".unfinished-"
_log = logging.getLogger(__name__)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """fsync a file or a folder, so that a rename cannot become durable before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(parent: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> tuple[Path, str]:
    """Write ``parent/step-<step>``; returns (folder, sha256 of its manifest). An older folder of the same step is replaced.

    ``tensors`` maps file stems to named tensors, ``state`` is JSON without NaN. What cannot be written whole (a full disk) leaves nothing.
    """
    from safetensors.torch import save_file  # reading a manifest needs no torch

    unfinished = begin(parent)
    try:
        for stem, named in tensors.items():
            save_file({name: tensor.detach().contiguous() for name, tensor in named.items()}, unfinished / f"{stem}.safetensors")
        return publish(unfinished, step=step, state=state, files=flushed(sorted(unfinished.iterdir())))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def begin(parent: Path) -> Path:
    """A new folder in ``parent`` for the files of a checkpoint that ``publish`` makes visible; what a killed writer left goes."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(parent)  # it may be what fills the disk
    unfinished = parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    unfinished.mkdir()
    return unfinished


def flushed(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """What the manifest says of ``files``, once they are on disk."""
    found = {}
    for path in files:
        found[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        _flush(path)
    return found


def publish(unfinished: Path, *, step: int, state: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> tuple[Path, str]:
    """Add state and manifest to the ``flushed`` files and rename all at once; see ``write``."""
    parent, folder = unfinished.parent, unfinished.parent / f"{_PREFIX}{step:010d}"
    (unfinished / STATE).write_text(json.dumps(state, sort_keys=True, allow_nan=False))
    listed = {**files, **flushed([unfinished / STATE])}
    (unfinished / MANIFEST).write_text(json.dumps({"format": 1, "files": listed}, indent=1, sort_keys=True))
    for path in (unfinished / MANIFEST, unfinished):
        _flush(path)
    digest = _sha256(unfinished / MANIFEST)
    if folder.exists():  # a rename cannot replace a folder that is not empty
        folder.rename(parent / f"{_UNFINISHED}{uuid.uuid4().hex}")
    unfinished.rename(folder)
    _flush(parent)
    _remove_unfinished(parent)
    return folder, digest


def verify(path: Path) -> str:
    """sha256 of the manifest of a whole, unchanged checkpoint; raises ValueError naming the file that is not as written."""
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Checkpoint {path} has no readable {MANIFEST} ({error}); it cannot be used. Take an older one.") from error
    if STATE not in expected:
        raise ValueError(f"Checkpoint {path}: {MANIFEST} lists no {STATE}; it cannot be used. Take an older one.")
    for name, (size, digest) in expected.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise ValueError(f"Checkpoint {path}: {name} is missing. Take an older one.")
        if file.stat().st_size != size:
            raise ValueError(f"Checkpoint {path}: {name} has {file.stat().st_size} bytes, {size} were written. Take an older one.")
        if _sha256(file) != digest:
            raise ValueError(f"Checkpoint {path}: the content of {name} is not what was written (sha256 differs). Take an older one.")
    return _sha256(path / MANIFEST)


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by file stem, state) of a checkpoint, verified first; written by several workers (models/parallel/sharded.py) or by one.

    Raises ValueError when it is damaged.
    """
    from safetensors.torch import load_file  # reading a manifest needs no torch

    verify(path)
    names = [name for name in json.loads((path / MANIFEST).read_bytes())["files"] if name.endswith(".safetensors")]
    if any(name.startswith(SHARD) for name in names):
        from models.parallel import sharded

        return sharded.read(path), read_state(path)
    return {Path(name).stem: load_file(path / name) for name in names}, read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint that was verified before."""
    return json.loads((path / STATE).read_bytes())


def _folders(parent: Path) -> list[Path]:
    """Checkpoint folders, newest first (unverified)."""
    if not parent.is_dir():
        return []
    found = [p for p in parent.iterdir() if p.is_dir() and p.name.startswith(_PREFIX) and p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)), reverse=True)


def load_latest_valid(parent: Path) -> Path | None:
    """The newest checkpoint under ``parent`` that verifies, or None. Damaged ones are skipped with a warning in the log."""
    for folder in _folders(parent):
        try:
            verify(folder)
        except ValueError as error:
            _log.warning("Skipped a damaged checkpoint: %s", error)
            continue
        return folder
    return None


def _remove_unfinished(parent: Path) -> None:
    for path in parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(parent: Path, keep: int, *, named: Collection[str] = ()) -> list[Path]:
    """Remove all but the newest ``keep`` valid checkpoints, and what killed writers left; returns the folders removed.

    Folders in ``named`` stay whatever their age. A damaged checkpoint newer than the newest valid one is removed as well: it can never be resumed from.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}: a run without a checkpoint cannot resume.")
    removed, kept = [], 0
    for folder in _folders(parent):
        if folder.name in named:
            continue
        if kept < keep:
            try:
                verify(folder)
                kept += 1
                continue
            except ValueError as error:
                _log.warning("Removing a damaged checkpoint: %s", error)
        shutil.rmtree(folder)
        removed.append(folder)
    _remove_unfinished(parent)
    return removed
