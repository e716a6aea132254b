"""How long the platform of a home was up: one file per start of its supervisor, whose modification time is the last time it was seen.

What holds machines while no stage works is paid for, too (services/shared_costs.py). A supervisor that dies leaves its file as it was last touched.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_BEAT_SECONDS = 5.0
_FOLDER = "uptime"


class Uptime:
    """The file of this start; ``beat`` says that the platform is still up."""

    def __init__(self, home: Path, started_at: float) -> None:
        self._file = home / _FOLDER / f"{started_at:.3f}.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({"started_at": started_at}))
        self._last = 0.0

    def beat(self, *, now: float | None = None) -> None:
        now = time.time() if now is None else now
        if abs(now - self._last) >= _BEAT_SECONDS:  # the clock may be set back
            self._last = now
            try:
                os.utime(self._file, (now, now))
            except OSError:  # the file was removed, or nothing can be written now
                return


def windows(home: Path) -> list[tuple[float, float]]:
    """(started, last seen) of every start, Unix seconds, oldest first."""
    found = []
    for file in sorted((home / _FOLDER).glob("*.json")):
        try:
            found.append((float(json.loads(file.read_text())["started_at"]), file.stat().st_mtime))
        except (FileNotFoundError, ValueError, KeyError):
            continue  # cut short by a dying machine
    return sorted(found)
