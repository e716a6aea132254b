"""One supervised process (or one-off step) of the platform, as plain data, and how to ask whether it is well.

Change here: what a service can declare, kinds of health checks. Not here: which services there are (services.py).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import http.client
import json
import os
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PROBE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process the supervisor keeps running, or with ``once`` a step that must succeed before others start.

    ``argv`` never holds secrets: they are in files or in ``env``. ``needs`` names services that must be healthy (steps: done)
    first. ``health`` is one of {"tcp": [host, port]}, {"unix": path}, {"postgres": socket path}, {"http": url} and
    {"airflow": url of its health page, "component": name}, and may add {"exists": file}. ``stop_after`` names services that must have ended before this
    one is asked to stop.
    """

    name: str
    argv: tuple[str, ...]
    log: str
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    once: bool = False
    stamp: str = ""  # written when a step has succeeded, so that the next `up` leaves it out
    port: int | None = None
    url: str | None = None
    health: Mapping[str, Any] = field(default_factory=dict)
    start_seconds: float = 300.0
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 15.0
    stop_after: tuple[str, ...] = ()
    own_death_signal: bool = False  # its command sets the parent-death signal itself (a change of user would clear ours)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Service:
        lists = {key: tuple(values[key]) for key in ("argv", "needs", "stop_after")}
        return cls(**{**values, **lists})


def probe(health: Mapping[str, Any], started_at: float) -> bool | None:
    """Whether the service answers; None when that cannot be known now (who would tell is itself down).

    ``started_at``: seconds since the epoch; an older heartbeat was that of its predecessor.
    """
    try:
        if "exists" in health and not os.path.exists(health["exists"]):
            return False
        if "tcp" in health or "unix" in health:
            _connect(health)
            return True
        if "postgres" in health:
            return _postgres_answers(health["postgres"])
        if "airflow" in health:
            return _airflow_component_is_alive(health["airflow"], health["component"], started_at)
        status, _ = _get(health["http"])
        return 200 <= status < 300
    except (OSError, http.client.HTTPException, ValueError):
        return None if "airflow" in health else False


def _connect(health: Mapping[str, Any]) -> None:
    family, address = (socket.AF_INET, tuple(health["tcp"])) if "tcp" in health else (socket.AF_UNIX, health["unix"])
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PROBE_SECONDS)
        connection.connect(address)


def _get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PROBE_SECONDS)
    try:
        connection.request("GET", parts.path or "/", headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read(1_000_000)
    finally:
        connection.close()


def _postgres_answers(path: str) -> bool:
    """Greet PostgreSQL: it answers with an authentication request only once it accepts sessions."""
    greeting = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"  # protocol 3.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PROBE_SECONDS)
        connection.connect(path)
        connection.sendall(struct.pack("!i", len(greeting) + 4) + greeting)
        answer = connection.recv(1)
        if answer == b"R":
            connection.sendall(b"X" + struct.pack("!i", 4))  # terminate politely, or the log fills with lost connections
        return answer == b"R"


def _airflow_component_is_alive(url: str, component: str, started_at: float) -> bool | None:
    status, body = _get(url)
    if status != 200:
        return None
    report = json.loads(body).get(component) or {}
    heartbeat = report.get(f"latest_{component}_heartbeat")
    if report.get("status") != "healthy" or not heartbeat:
        return False
    return dt.datetime.fromisoformat(heartbeat).timestamp() >= started_at
