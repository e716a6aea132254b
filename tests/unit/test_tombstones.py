"""What was forgotten is kept for good, without the text, and changes the identity of exactly the days that held it."""

from __future__ import annotations

import hashlib

from jobs import recipes
from jobs.inputs import resolve_inputs
from jobs.run import stage_module
from jobs.services import tombstones
from jobs.services.tombstones import Request

FIRST, SECOND = "2026-11-01", "2026-11-02"
ONE, TWO = "1" * 32, "2" * 32


def identity(env, day: str) -> dict[str, str]:
    file = env.landing / "web" / day / "a.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"text": "t"}\n')
    return resolve_inputs(env, "ingest", stage_module("ingest"), recipes.load("smoke"), day, {}).identity


def test_only_days_that_held_a_forgotten_document_are_other_work(env):
    before = {day: identity(env, day) for day in (FIRST, SECOND)}
    assert all("forgotten" not in found for found in before.values())
    tombstones.keep(env, Request(ONE, {ONE: [FIRST]}, "2026-11-05T00:00:00Z"))
    first = identity(env, FIRST)
    assert identity(env, SECOND) == before[SECOND]
    assert first == before[FIRST] | {"forgotten": hashlib.sha256(ONE.encode()).hexdigest()[:16]}
    tombstones.keep(env, Request(ONE, {ONE: [FIRST]}, "2026-11-06T00:00:00Z"))
    assert identity(env, FIRST) == first
    tombstones.keep(env, Request(TWO, {TWO: [FIRST]}, "2026-11-06T00:00:00Z"))
    assert identity(env, FIRST)["forgotten"] == hashlib.sha256(f"{ONE}\n{TWO}".encode()).hexdigest()[:16]


def test_a_request_made_again_forgets_nothing_it_knew(env):
    uri = tombstones.hidden("file://x")
    tombstones.keep(env, Request("uri-x", {ONE: [FIRST]}, "2026-11-05T00:00:00Z", "asked by mail", uri, ["web/a"], [{"run_key": "t1"}]))
    again = tombstones.keep(env, Request("uri-x", {TWO: [SECOND]}, "2026-11-09T00:00:00Z", trainings=[{"run_key": "t2"}]))
    assert tombstones.find(env, "uri-x") == again
    assert (again.places, again.asked_at, again.why, again.landed) == ({ONE: [FIRST], TWO: [SECOND]}, "2026-11-05T00:00:00Z", "asked by mail", ["web/a"])
    assert [t["run_key"] for t in again.trainings] == ["t1", "t2"]
    known = tombstones.forgotten(env)
    assert known == tombstones.Forgotten(frozenset({ONE, TWO}), frozenset({hashlib.sha256(b"file://x").hexdigest()}))
    written = next((env.warehouse / "_forgotten").iterdir()).read_text()
    assert "file://x" not in written
