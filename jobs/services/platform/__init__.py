"""The platform of one machine: `up` starts it under one supervisor, `status` tells how it is, `down` stops all of it and nothing else.

Change here: what a person sees of starting and stopping. Not here: which services there are (services.py), how they are
watched (supervisor.py), how each is started (postgres.py, airflow.py, engines.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services.platform.ports import is_taken, turn
from jobs.services.platform.processes import MARK, end, leftovers, send, wait_until_gone
from jobs.services.platform.record import is_same_process, locked, read_record, write_private, write_record
from jobs.services.process_identity import boot_id, is_suspended

__all__ = ["client_environment", "down", "reap", "render_status", "status", "up"]

_UP_SECONDS = 600.0  # a quiet machine needs less than a tenth of it
_DOWN_SECONDS = 90.0
_PORT_CHOICES = 3  # another program may take a port between the choice and the start
_LOG_TAIL_LINES = 15


def up(env: Environment, *, echo: Callable[[str], None] = print) -> dict[str, Any]:
    """Start what is not running yet, wait until every service is healthy, and return the record (services, addresses).

    Calling it again is harmless; calls at the same time take turns. When a service cannot be started, everything that
    was started is stopped again, and the MoelineError names the service, its exit code and the end of its log. Refused where tables
    are of a later moeline, or of an earlier one and need `moeline upgrade`: stages would only fail, one by one.
    """
    from jobs.services import table_migrations, unfinished_home

    began = time.monotonic()
    unfinished_home.refuse(env)
    table_migrations.require_current(env)
    with contextlib.ExitStack() as held:
        waiting = {"timeout_seconds": _UP_SECONDS + 60, "waiting": lambda: echo("Another `moeline up` is at work; waiting for it.")}
        held.enter_context(locked(env.home / "up.lock", **waiting))
        record = read_record(env.home)
        started = not is_same_process(record.get("supervisor"))
        if started:
            held.enter_context(turn(**waiting))
            began = time.monotonic()
        for further in reversed(range(_PORT_CHOICES)):
            if started:
                _reap(env.home, record)
                record = _start_supervisor(env)
            try:
                record = _wait_until_healthy(env.home, record, echo, began)
                break
            except BaseException as problem:
                if started:
                    record = down(env, echo=lambda _: None)
                if not (started and further and isinstance(problem, MoelineError) and (lost := ports_lost(record))):
                    raise
                echo(f"Somebody else took {', '.join(lost)} between choosing and starting; starting again with other ports.")
    seconds = time.monotonic() - began
    echo(f"The platform is up ({seconds:.0f} s): {record['addresses']['airflow_url']}" if started else "The platform is up already.")
    return record


def down(env: Environment, *, echo: Callable[[str], None] = print) -> dict[str, Any]:
    """Stop the platform of this home: the services in order, then whatever they left. Other processes are not touched."""
    record = read_record(env.home)
    supervisor = record.get("supervisor") or {}
    running = is_same_process(supervisor)
    if running:
        send(supervisor["pid"], signal.SIGTERM)
        if not wait_until_gone(supervisor, _DOWN_SECONDS):
            send(supervisor["pid"], signal.SIGKILL)
            wait_until_gone(supervisor, 5)
    ended = _reap(env.home, read_record(env.home) or record)
    echo("The platform is stopped." if running or ended else "The platform was not running.")
    return read_record(env.home)


def status(env: Environment) -> dict[str, Any]:
    """How every service is right now: asks each one. ``state`` is healthy, unhealthy, stopped, or what the supervisor is doing with it."""
    from jobs.services.platform.service import probe

    record = read_record(env.home)
    supervisor = record.get("supervisor")
    supervised = is_same_process(supervisor)
    services: dict[str, Any] = {}
    for name, entry in record.get("services", {}).items():
        if entry.get("once"):
            continue
        state, alive = entry["state"], is_same_process(entry)
        if not alive:
            state = state if supervised and state in ("waiting", "backing-off", "failed") else "stopped"
        elif state in ("healthy", "unhealthy"):
            answer = not is_suspended(entry["pid"]) and probe(entry["health"], entry["started_at"])
            state = "healthy" if answer or (answer is None and state == "healthy") else "unhealthy"
        services[name] = {
            "state": state,
            "pid": entry["pid"] if alive else None,
            "port": entry.get("port"),
            "url": entry.get("url"),
            "uptime_seconds": round(time.time() - entry["started_at"], 1) if alive else None,
            "restarts": entry.get("restarts", 0),
            "log": entry.get("log"),
        }
    return {
        "running": supervised,
        "healthy": supervised and bool(services) and all(service["state"] == "healthy" for service in services.values()),
        "supervisor": supervisor if supervised else None,
        "services": services,
        "addresses": record.get("addresses", {}) if supervised else {},
    }


def render_status(found: dict[str, Any]) -> str:
    """What ``status`` found, as a table for a person."""
    if not found["services"]:
        return "The platform is not running. Start it with: moeline up"
    lines = [f"{'service':<22} {'state':<12} {'pid':>8} {'port':>6} {'up':>9} {'restarts':>8}  log"]
    for name, service in found["services"].items():
        age = "-" if service["uptime_seconds"] is None else _clock(service["uptime_seconds"])
        lines.append(
            f"{name:<22} {service['state']:<12} {service['pid'] or '-':>8} {service['port'] or '-':>6} {age:>9} {service['restarts']:>8}  {service['log']}"
        )
    addresses = found["addresses"]
    if addresses:
        lines += ["", f"Airflow  {addresses['airflow_url']}  user {addresses['airflow_user']}, password in {addresses['airflow_password_file']}"]
        lines += [f"MLflow   {addresses['mlflow_uri']}" + _signing_in(addresses)]
    return "\n".join(lines)


def _signing_in(addresses: dict[str, Any]) -> str:
    file = addresses.get("mlflow_password_file")
    return f"  user {addresses['mlflow_user']}, password in {file}" if file else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def client_environment(env: Environment) -> dict[str, str]:
    """Variables a process needs before it imports ray, to reach the local head: its token, and to stay on loopback.

    Airflow's tasks have them already. Empty when another Ray cluster is configured or no platform was ever started.
    """
    if env.services.get("ray_address") or not (env.home / "ray" / "token").exists():
        return {}
    from jobs.services.platform.engines import ray_environment

    return ray_environment(env)


def _start_supervisor(env: Environment) -> dict[str, Any]:
    from jobs.services.platform.services import plan
    from jobs.services.platform.supervisor import PLAN_FILE

    write_private(env.home / PLAN_FILE, json.dumps(plan(env)))
    log = env.home / "logs" / "supervisor.log"
    variables = {**os.environ, "PYTHONPATH": str(REPO), MARK: str(env.home)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.services.platform.supervisor", str(env.home)],
            cwd=env.home, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        record = read_record(env.home)
        if (record.get("supervisor") or {}).get("pid") == process.pid:
            return record
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise MoelineError(f"The supervisor of the platform did not start (exit code {process.poll()}).\n{_tail(log)}\nLog: {log}")


def _wait_until_healthy(home: Path, record: dict[str, Any], echo: Callable[[str], None], began: float) -> dict[str, Any]:
    told: set[str] = set()
    deadline = time.monotonic() + _UP_SECONDS
    first = all(entry["state"] in ("waiting", "starting") for entry in record["services"].values())
    while True:
        record = read_record(home)
        services = record.get("services", {})
        for name, entry in services.items():
            if name not in told and entry["state"] in ("healthy", "done"):
                told.add(name)
                if first:
                    echo(f"  {name:<22} {entry['state']:<8} {time.monotonic() - began:5.1f} s")
            if entry["state"] == "failed":
                raise MoelineError(f"{name} could not be started: exit code {entry['exit_code']}.\n{_tail(Path(entry['log']))}\nLog: {entry['log']}")
        if services and all(entry["state"] in ("healthy", "done") for entry in services.values()):
            return record
        if not is_same_process(record.get("supervisor")):
            log = home / "logs" / "supervisor.log"
            raise MoelineError(f"The platform was stopped while it was starting.\n{_tail(log)}\nLog: {log}")
        if time.monotonic() > deadline:
            waiting = {name: entry["state"] for name, entry in services.items() if entry["state"] not in ("healthy", "done")}
            name = next(iter(waiting))
            raise MoelineError(f"Not healthy after {_UP_SECONDS:.0f} s: {waiting}.\n{_tail(Path(services[name]['log']))}\nLog: {services[name]['log']}")
        time.sleep(0.2)


def ports_lost(record: dict[str, Any]) -> list[str]:
    """Ports of services, all of which are stopped, that somebody listens on all the same."""
    return [f"port {entry['port']} of {name}" for name, entry in record.get("services", {}).items() if entry.get("port") and is_taken(entry["port"])]


def reap(env: Environment) -> int:
    """End what the platform of this home left running, if its supervisor is gone; how many processes there were."""
    with locked(env.home / "up.lock", timeout_seconds=_UP_SECONDS + 60):
        record = read_record(env.home)
        return 0 if is_same_process(record.get("supervisor")) else _reap(env.home, record)


def _reap(home: Path, record: dict[str, Any]) -> int:
    """End what a killed supervisor left behind, and forget its addresses; how many processes there were."""
    sessions = [entry["pid"] for entry in record.get("services", {}).values() if entry.get("pid") and entry.get("boot_id") == boot_id()]
    found = leftovers(home, sessions)
    if found:
        end(found, grace_seconds=5.0)
    if record.get("addresses") or any(entry.get("pid") for entry in record.get("services", {}).values()):
        services = {name: {**entry, "pid": None, "state": "stopped"} for name, entry in record["services"].items() if not entry.get("once")}
        write_record(home, {"supervisor": None, "services": services, "addresses": {}})
    return len(found)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  | {line}" for line in lines[-_LOG_TAIL_LINES:])
