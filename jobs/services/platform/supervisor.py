"""`python -m jobs.services.platform.supervisor HOME`: the one process that starts, watches, restarts and stops all services.

It is single-threaded and does nothing but this: every fifth of a second it collects ended children, starts what may start,
asks running services whether they are well, and writes platform.json when something changed.
Change here: when a service is started, restarted or given up. Not here: what the services are (services.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.services.platform.processes import adopt_orphans, descendants, die_with_parent, end, send
from jobs.services.platform.record import identity, locked, write_record
from jobs.services.platform.service import Service, probe
from jobs.services.platform.uptime import Uptime
from jobs.services.process_identity import boot_id, is_suspended, started

PLAN_FILE = "plan.json"
LOCK_FILE = "supervisor.lock"
_TICK_SECONDS = 0.2
_PROBE_EVERY_SECONDS = {"starting": 0.5, "healthy": 5.0, "unhealthy": 2.0}
_FIRST_STARTS = 3  # a service that ends this often without ever having been well is given up
_LONGEST_BACK_OFF_SECONDS = 60.0
_STABLE_SECONDS = 60.0  # well for so long: an exit is a new problem, not the old one
_HUNG_SECONDS = 120.0  # running but not answering for so long: restarted
_SLOW_SECONDS = 10.0  # running but not answering for so long: reported as unhealthy (a busy machine answers late)
_LAST_WORDS_SECONDS = 20.0
_LARGEST_LOG_BYTES = 20_000_000


@dataclass
class Supervised:
    """A service and how it fares. ``state``: waiting, starting, healthy, unhealthy, backing-off, done, failed, stopping, stopped."""

    service: Service
    state: str = "waiting"
    pid: int | None = None
    started: str = ""
    started_at: float = 0.0  # seconds since the epoch, to tell; all other times are monotonic
    began: float = 0.0
    next_start: float = 0.0
    next_probe: float = 0.0
    healthy_since: float | None = None
    failing_since: float | None = None
    was_healthy: bool = False
    failures: int = 0
    restarts: int = 0
    exit_code: int | None = None
    stop_stage: int = 0
    stop_deadline: float = 0.0

    @property
    def ready(self) -> bool:
        return self.state in ("healthy", "unhealthy", "done") and (self.was_healthy or self.service.once)

    def to_json(self) -> dict[str, Any]:
        service = self.service
        return {
            "pid": self.pid, "started": self.started, "boot_id": boot_id(), "state": self.state, "port": service.port, "url": service.url,
            "health": dict(service.health), "log": service.log, "restarts": self.restarts, "exit_code": self.exit_code, "started_at": self.started_at,
            "once": service.once,
        }  # fmt: skip


class Supervisor:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.home = Path(plan["home"])
        self.addresses = plan["addresses"]
        self.all = {values["name"]: Supervised(Service.from_json(values)) for values in plan["services"]}
        self.me = {**identity(os.getpid()), "started_at": time.time(), "log": str(self.home / "logs" / "supervisor.log")}
        self.uptime = Uptime(self.home, self.me["started_at"])
        self.stopping = False
        self.changed = True

    def run(self) -> None:
        """Until asked to stop. However it ends, it leaves no child behind."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        try:
            while not self.stopping:
                self._tick()
                time.sleep(_TICK_SECONDS)
        except Exception:
            _say(traceback.format_exc())
            raise
        finally:
            self._stop_all()

    def _ask_to_stop(self, *_: object) -> None:
        self.stopping = True

    def _tick(self) -> None:
        self._collect()
        now = time.monotonic()  # as everywhere here: the clock may be set
        self.uptime.beat()
        for one in self.all.values():
            if self.stopping:
                return
            if one.state in ("waiting", "backing-off") and now >= one.next_start and all(self.all[need].ready for need in one.service.needs):
                self._start(one)
            elif one.pid is not None and not one.service.once and now >= one.next_probe:
                self._probe(one)
            if one.state == "starting" and now - one.began > one.service.start_seconds:
                _say(f"{one.service.name}: not healthy after {one.service.start_seconds:.0f} s, ending it")
                self._kill(one)
        if self.changed:
            self._write()

    # -- one service --------------------------------------------------------------------------------------------------

    def _start(self, one: Supervised) -> None:
        service = one.service
        try:
            with _open_log(Path(service.log)) as log:
                process = subprocess.Popen(
                    service.argv, env=dict(service.env), cwd=service.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, preexec_fn=None if service.own_death_signal else lambda: die_with_parent(service.stop_signal),  # noqa: PLW1509
                )  # fmt: skip
        except OSError as error:
            _say(f"{service.name}: cannot be started: {error}")
            self._ended(one, 127)
            return
        one.pid, one.started_at, one.began, one.exit_code = process.pid, time.time(), time.monotonic(), None
        one.started = started(process.pid)
        process.returncode = 0  # children are collected in one place, below; without this Popen would complain that this one still runs
        one.healthy_since = one.failing_since = None
        one.next_probe = one.began + _PROBE_EVERY_SECONDS["starting"]
        self._set(one, "starting")

    def _probe(self, one: Supervised) -> None:
        answer = False if one.pid is not None and is_suspended(one.pid) else probe(one.service.health, one.started_at)
        now = time.monotonic()
        if answer is True:
            one.failing_since = None
            one.healthy_since = one.healthy_since or now
            one.was_healthy = True
            if now - one.healthy_since > _STABLE_SECONDS:
                one.failures = 0
            self._set(one, "healthy")
        elif answer is False and one.state != "starting":
            one.failing_since = one.failing_since or now
            if now - one.failing_since > _SLOW_SECONDS:
                one.healthy_since = None
                self._set(one, "unhealthy")
            if now - one.failing_since > _HUNG_SECONDS:
                _say(f"{one.service.name}: no answer for {_HUNG_SECONDS:.0f} s, restarting it")
                self._kill(one)
        one.next_probe = now + _PROBE_EVERY_SECONDS.get(one.state, 1.0)

    def _collect(self) -> None:
        """Take note of every ended child, services and adopted orphans alike."""
        by_pid = {one.pid: one for one in self.all.values() if one.pid is not None}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                self._ended(by_pid[pid], os.waitstatus_to_exitcode(status))

    def _ended(self, one: Supervised, code: int) -> None:
        service = one.service
        one.pid, one.exit_code, one.healthy_since = None, code, None
        if service.once and code == 0:
            if service.stamp:
                Path(service.stamp).touch()
            self._set(one, "done")
            return
        if self.stopping:
            self._set(one, "stopped")
            return
        self._end_orphans()
        one.failures += 1
        if not one.was_healthy and (service.once or one.failures >= _FIRST_STARTS):
            self._set(one, "failed")
            return
        pause = min(2.0 ** (one.failures - 1), _LONGEST_BACK_OFF_SECONDS)
        _say(f"{service.name}: ended with {code}, starting it again in {pause:.0f} s")
        one.restarts += 1
        one.next_start = time.monotonic() + pause
        self._set(one, "backing-off")

    def _end_orphans(self) -> None:
        """What a dead service left running (a scheduler's tasks, say): its successor would start the same work beside it."""
        services = {one.pid for one in self.all.values()}
        orphans = [child for child in psutil.Process().children() if child.pid not in services]
        end([process for orphan in orphans for process in (*descendants(orphan.pid), orphan)], grace_seconds=5.0)

    def _kill(self, one: Supervised) -> None:
        if one.pid is not None:
            below = descendants(one.pid)
            send(one.pid, signal.SIGKILL)
            end(below, grace_seconds=1.0)

    def _set(self, one: Supervised, state: str) -> None:
        if one.state != state:
            self.changed = True
        one.state = state

    # -- all of it ----------------------------------------------------------------------------------------------------

    def _press_to_stop(self, one: Supervised) -> None:
        """Ask the service; later ask all it started too (a scheduler waits for its tasks, and they write their cost on the way out); then kill."""
        now = time.monotonic()
        if one.pid is None or now < one.stop_deadline:
            return
        if one.stop_stage == 0:
            self._set(one, "stopping")
            send(one.pid, one.service.stop_signal)
            one.stop_deadline = now + one.service.stop_seconds
        elif one.stop_stage == 1 and (below := descendants(one.pid)):
            for process in below:
                send(process.pid, signal.SIGTERM)
            one.stop_deadline = now + _LAST_WORDS_SECONDS
        else:
            _say(f"{one.service.name}: does not stop, ending it")
            self._kill(one)
            one.stop_deadline = now + 5.0
        one.stop_stage += 1

    def _stop_all(self) -> None:
        """Ask each service to stop once those that use it have; end what does not, and whatever is left below us."""
        self.stopping = True
        while any(one.pid is not None for one in self.all.values()):
            for one in self.all.values():
                users = (self.all[name] for name in one.service.stop_after if name in self.all)
                if one.pid is not None and all(user.pid is None for user in users):
                    self._press_to_stop(one)
            self._collect()
            time.sleep(0.05)
        end(descendants(os.getpid()), grace_seconds=5.0)
        self._collect()
        for one in self.all.values():
            if one.state not in ("done", "failed"):
                one.state = "stopped"
        self._write(addresses={})

    def _write(self, addresses: dict[str, Any] | None = None) -> None:
        services = {name: one.to_json() for name, one in self.all.items()}
        with contextlib.suppress(OSError):  # the disk is full or read-only: told later; to end all services for it would be worse
            write_record(self.home, {"supervisor": self.me, "services": services, "addresses": self.addresses if addresses is None else addresses})
            self.changed = False


def _say(text: str) -> None:
    """A line in the supervisor's log, unless the disk is full."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _open_log(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LARGEST_LOG_BYTES:
            os.replace(path, path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def main(home: Path) -> None:
    with locked(home / LOCK_FILE, timeout_seconds=10.0):
        Supervisor(json.loads((home / PLAN_FILE).read_text())).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
