"""What is written down about a running platform: platform.json, private files, locks, and which process is really ours.

Change here: the shape of platform.json. Not here: starting and stopping (supervisor.py), which services there are (services.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import PLATFORM_FILE
from jobs.services.process_identity import boot_id, is_running, started


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step, readable by this user only from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp creates with 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def secret(path: Path, make: Callable[[], str]) -> str:
    """The text of a 0600 file, made on first use, so that secrets survive restarts and never stand in a command line."""
    try:
        return path.read_text()
    except FileNotFoundError:
        write_private(path, make())
        return path.read_text()


def read_record(home: Path) -> dict[str, Any]:
    """platform.json, or {} when there is none or it was cut short by a dying machine."""
    try:
        record = json.loads((home / PLATFORM_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(home: Path, record: dict[str, Any]) -> None:
    write_private(home / PLATFORM_FILE, json.dumps(record, indent=2) + "\n")


def identity(pid: int) -> dict[str, Any]:
    """What identifies a process for good."""
    return {"pid": pid, "started": started(pid), "boot_id": boot_id()}


def is_same_process(entry: dict[str, Any] | None) -> bool:
    """Whether the recorded process is still running, and is not another one that got its pid."""
    return bool(entry and entry.get("pid")) and is_running(int(entry["pid"]), entry.get("started") or "")


def taken(descriptor: int, *, timeout_seconds: float, waiting: Callable[[], None]) -> bool:
    """Lock an open file or folder alone; whether that was possible in time. ``waiting`` is called once when another process holds it."""
    deadline, told = time.monotonic() + timeout_seconds, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            if not told:
                waiting()
                told = True
            time.sleep(0.2)


@contextlib.contextmanager
def locked(path: Path, *, timeout_seconds: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the file lock ``path``; the kernel frees it when its holder dies, so it is never stale.

    ``waiting`` is called once when another process holds it. Raises MoelineError after ``timeout_seconds``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not taken(descriptor, timeout_seconds=timeout_seconds, waiting=waiting):
            raise MoelineError(f"Another process has been holding {path} for {timeout_seconds:.0f} s. Wait for it, or end it, then try again.")
        yield
    finally:
        os.close(descriptor)
