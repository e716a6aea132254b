"""What was forgotten on request: one file per request in the warehouse, written whole, never taken back and never holding the text.

A doc_id is a hash over source, uri and text; a uri is kept as its sha256, so what was forgotten cannot be read from the list. Ingest lets
nothing through that the list names, on whatever day it lands again. Change here: what a request remembers. Not here: what forgetting does
(jobs/forget.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.environment import Environment
from jobs.services.results import write_whole


@dataclass(frozen=True)
class Request:
    """``places``: doc_id -> data days that held it. ``uri``: sha256 of the uri, or "". ``landed``: files under landing/ that hold it.

    ``trainings``, ``copies``, ``unreadable`` are what was found before the rows went (jobs/forget.py): nothing else could tell it afterwards.
    ``removed_at``: when files of older versions were removed last.
    """

    name: str
    places: dict[str, list[str]]
    asked_at: str
    why: str = ""
    uri: str = ""
    landed: list[str] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)
    removed_at: str = ""

    @property
    def doc_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.places))

    @property
    def days(self) -> tuple[str, ...]:
        return tuple(sorted({day for days in self.places.values() for day in days}))


@dataclass(frozen=True)
class Forgotten:
    """What ingest refuses: doc_ids, and the hidden uris of everything that ever lands under them."""

    doc_ids: frozenset[str]
    uris: frozenset[str]


def hidden(uri: str) -> str:
    """A uri as the list keeps it."""
    return hashlib.sha256(uri.strip().encode()).hexdigest()


def requests(env: Environment) -> list[Request]:
    """All requests, by name; [] where nothing was ever forgotten."""
    files = sorted((env.warehouse / "_forgotten").glob("*.json"))
    return [Request(**json.loads(file.read_text())) for file in files if not file.name.startswith(".")]


def find(env: Environment, name: str) -> Request | None:
    return next((request for request in requests(env) if request.name == name), None)


def keep(env: Environment, asked: Request) -> Request:
    """Write a request, together with what an earlier one of the same name knew; returns both in one. One writer at a time (jobs/forget.py)."""
    before = find(env, asked.name)
    if before is not None:
        asked = _joined(before, asked)
    write_whole(env.warehouse / "_forgotten" / f"{asked.name}.json", json.dumps(asdict(asked), sort_keys=True, indent=1).encode())
    return asked


def _joined(before: Request, now: Request) -> Request:
    places = {
        doc_id: sorted({*before.places.get(doc_id, ()), *now.places.get(doc_id, ())}) for doc_id in sorted({*before.places, *now.places})
    }  # fmt: skip
    joined = {
        "trainings": _by("run_key", sorted([*before.trainings, *now.trainings], key=lambda run: int(run.get("tokens", 0)))),
        "copies": _by("doc_id", [*before.copies, *now.copies]), "unreadable": _by("what", [*before.unreadable, *now.unreadable]),
        "removed_at": max(before.removed_at, now.removed_at),
    }  # fmt: skip
    landed = sorted({*before.landed, *now.landed})
    return Request(before.name, places, before.asked_at, now.why or before.why, before.uri or now.uri, landed, **joined)


def _by(key: str, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per key, the last one."""
    found = {row[key]: dict(row) for row in rows}
    return [found[k] for k in sorted(found)]


def forgotten(env: Environment) -> Forgotten:
    """Everything that was ever asked to be forgotten."""
    known = requests(env)
    return Forgotten(frozenset(doc_id for request in known for doc_id in request.places), frozenset(request.uri for request in known if request.uri))


def of_day(env: Environment, day: str | None) -> list[str]:
    """Forgotten documents that the day held when they were asked for, sorted."""
    return sorted({doc_id for request in requests(env) for doc_id, days in request.places.items() if day in days})


def digest(env: Environment, day: str | None) -> str:
    """Identity of what the day must do without, or "" where it never held anything that was forgotten."""
    doc_ids = of_day(env, day)
    return hashlib.sha256("\n".join(doc_ids).encode()).hexdigest()[:16] if doc_ids else ""
