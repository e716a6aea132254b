"""When a training must stop before its last step: the money is used up, or it was asked to (SIGTERM, a request left in its folder).

Asked from outside through the run's folder, because a training process may be anywhere and may not own its signals (a Ray worker does not).
Change here: what stops a training, how it is asked to. Not here: what happens then (training.py), what may be spent (jobs/budget.py).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jobs.services.results import write_whole

STOP_REQUEST = "stop-request.json"
BUDGET, STOP = "budget", "stop"  # why a training ends before its last step
_POLL_SECONDS = 0.2  # the folder may lie on a network file system
_RECENT_STEPS = 5
_PREEMPTION_SECONDS = 2.0


@dataclass(frozen=True)
class Allowance:
    """What a training costs and may cost. ``spent_usd`` went before ``since`` (Unix seconds), ``usd_per_second`` from then on; of that at most
    ``usd`` (None: no limit), which is what is left of the budget ``limit_usd``."""

    usd: float | None
    usd_per_second: float
    since: float
    limit_usd: float | None
    spent_usd: float = 0.0

    def seconds_left(self, now: float) -> float:
        """Seconds until it is spent; negative afterwards, infinite without a limit or where nothing costs anything."""
        return math.inf if self.usd is None or self.usd_per_second <= 0 else self.since + self.usd / self.usd_per_second - now

    def cost(self, now: float) -> float:
        """Spent until now, by all attempts."""
        return self.spent_usd + (now - self.since) * self.usd_per_second


class Control:
    """Asked before every step of the training in ``folder``: may it take one more?

    ``finishing_steps``: what the end takes (held-out loss) in times of one step. ``signalled`` tells of a signal to this process.
    """

    def __init__(
        self, folder: Path, allowance: Allowance | None, *, finishing_steps: float = 0.0, signalled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._request, self._allowance, self._finishing, self._signalled, self._clock = folder / STOP_REQUEST, allowance, finishing_steps, signalled, clock
        self._recent: list[float] = []
        self._asked_at = -math.inf
        self.saving_seconds = 0.0  # the last checkpoint took so long to write

    def took(self, seconds: float) -> None:
        """A step is done."""
        self._recent = [*self._recent[1 - _RECENT_STEPS :], seconds]

    def why_stop(self) -> str | None:
        """``budget``, ``stop`` or None. The step that would end above the allowance, with all that must follow it, is not taken."""
        if self._signalled() or self._requested():
            return STOP
        if self._allowance is None:
            return None
        step = max(self._recent, default=0.0)  # nothing measured: one step is tried if anything is left
        needed = step * (1.0 + self._finishing) + self.saving_seconds
        return BUDGET if self._allowance.seconds_left(self._clock()) <= needed else None

    def _requested(self) -> bool:
        now = time.monotonic()
        if now - self._asked_at < _POLL_SECONDS:
            return False
        self._asked_at = now
        return self._request.exists()


def request_stop(folder: Path, reason: str) -> None:
    """Ask the training in ``folder``, wherever it runs, to write a checkpoint after its current step and end."""
    write_whole(folder / STOP_REQUEST, json.dumps({"reason": reason, "at": time.time()}).encode())


def withdraw_request(folder: Path) -> None:
    """Forget an earlier request: a new attempt begins."""
    (folder / STOP_REQUEST).unlink(missing_ok=True)


@contextmanager
def caught_sigterm() -> Iterator[Callable[[], bool]]:
    """While the block runs, SIGTERM only sets a flag, which the function given tells. In another thread than the main one: never set."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.set())
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopped_through(folder: Path, grace_seconds: float) -> Iterator[None]:
    """While the block waits for the training in ``folder``, SIGTERM to this process asks the training to checkpoint first.

    The signal's own effect follows when the block ends, at the latest after ``grace_seconds``; a second SIGTERM has it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    late: list[threading.Timer] = []

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        request_stop(folder, "SIGTERM")
        late.append(threading.Timer(grace_seconds, os.kill, (os.getpid(), signal.SIGTERM)))
        late[0].daemon = True
        late[0].start()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if late and late[0].is_alive():
            late[0].cancel()
            os.kill(os.getpid(), signal.SIGTERM)


class PreemptionNotice:
    """Ray's word that this training's node is about to be taken away (a reclaimed spot instance). Never outside Ray Train.

    The recommended answer is a checkpoint at once and to go on: Ray starts the training again elsewhere when the node is really gone.
    Workers of a group must all ask equally often, or they wait for one another: only a training that has its group to itself asks.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = -math.inf
        self._answered: tuple[str, ...] = ()
        self._ask = _ray_preemption()

    def is_new(self) -> bool:
        """Whether a notice has arrived that was not told before. Asks Ray at most every few seconds: it costs a call to another process."""
        if self._ask is None or self._clock() - self._asked_at < _PREEMPTION_SECONDS:
            return False
        self._asked_at = self._clock()
        info = self._ask()
        nodes = () if info is None else tuple(info.preempted_node_ids)
        if not nodes or nodes == self._answered:
            return False
        self._answered = nodes
        return True


def _ray_preemption() -> Callable[[], Any] | None:
    """Ray Train's question, where this process is the only worker of a group."""
    if "ray.train" not in sys.modules:
        return None
    from ray import train

    try:
        alone = train.get_context().get_world_size() == 1
    except RuntimeError:  # no worker of a training
        return None
    return train.get_preemption_info if alone else None
