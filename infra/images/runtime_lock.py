"""`python -m infra.images.runtime_lock`: requirements.lock without what only tests and the extra lm-eval need, for the images, on standard output.

The same pins with the same hashes. Change here: what an image leaves out. Not here: how a lock is read (infra/supply/locks.py).
"""

from __future__ import annotations

from pathlib import Path

from infra.supply import locks
from jobs.environment import REPO

KEPT = ("runtime", "extra kubernetes")


def runtime_lock(repo: Path = REPO) -> str:
    """Lock file text. Raises MoelineError when requirements.lock cannot be read whole."""
    pins = locks.read_lock(repo / locks.MAIN)
    used = locks.uses(pins, repo / "pyproject.toml")
    hashes = " \\\n    --hash=sha256:"
    return "".join(f"{pin.name}=={pin.version}{hashes}{hashes.join(pin.sha256)}\n" for pin in pins if used[pin.name] in KEPT)


if __name__ == "__main__":
    print(runtime_lock(), end="")
