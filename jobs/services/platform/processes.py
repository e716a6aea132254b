"""Finding and ending processes that belong to the platform, and no others.

Change here: how processes are recognised and ended. Not here: when (supervisor.py, __init__.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

MARK = "MOELINE_PLATFORM_HOME"  # in the environment of every process of a platform
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None  # bound here: not safe to do between fork and exec


def die_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when its parent dies (Linux; elsewhere leftovers go at the next `up`)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none can escape `down` (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[psutil.Process]:
    """All living processes below ``pid``."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def leftovers(home: Path, sessions: Iterable[int]) -> list[psutil.Process]:
    """Processes of an earlier platform of ``home`` whose supervisor is gone.

    Recognised by the mark in their environment. Processes that overwrite theirs to set a title (Airflow, Ray, PostgreSQL)
    are recognised by both a recorded session and a working folder inside ``home``: a session number alone may have been
    given to somebody else since, a folder alone may be somebody's shell.
    """
    import psutil

    wanted, inside, me = set(sessions), str(home), {os.getpid(), os.getppid()}
    found = []
    for process in psutil.process_iter():
        if process.pid in me:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == inside or (os.getsid(process.pid) in wanted and _is_inside(process.cwd(), inside)):
                found.append(process)
    return found


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


def end(processes: Iterable[Any], *, grace_seconds: float) -> int:
    """Ask the processes to stop, then make those that have not; how many had to be made."""
    import psutil

    alive = list(processes)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(alive)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until_gone(entry: dict[str, Any], seconds: float) -> bool:
    """Whether the recorded process ended within the time."""
    from jobs.services.platform.record import is_same_process

    deadline = time.monotonic() + seconds
    while is_same_process(entry):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
