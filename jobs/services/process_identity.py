"""Which process is really meant: a pid alone is used again by the kernel, and the time of day at which it started moves when the clock is set.

Start times in the kernel's own ticks since boot do not (proc(5), field 22); psutil's ``create_time`` adds them to a boot time that is reckoned back
from the clock of now. Change here: what identifies a process. Not here: what is done about one that is gone (platform/, ledger.py).
"""

from __future__ import annotations

import os
from pathlib import Path

_STARTTIME = 19  # field 22 of /proc/<pid>/stat, counted from the state, the first after the name in parentheses


def boot_id() -> str:
    """A text that changes with every boot of the machine (empty where the kernel offers none)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def place() -> str:
    """Where this process's pid means something: the boot of this machine and the pid namespace (every container has its own)."""
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return boot_id()


def started(pid: int) -> str:
    """When the process started, as a text to compare; empty when there is none with this pid."""
    import psutil

    try:
        if Path("/proc/self/stat").exists():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{boot_id()} {fields[_STARTTIME]}"
        return f"{psutil.Process(pid).create_time():.2f}"
    except (OSError, psutil.Error):
        return ""


def is_suspended(pid: int) -> bool:
    """Whether the process was stopped by a signal: the kernel still takes connections for it, so that it looks well to who only knocks."""
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def is_running(pid: int, began: str) -> bool:
    """Whether the process that ``began`` then is still there, and more than its exit status is left of it."""
    import psutil

    try:
        return bool(began) and started(pid) == began and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
