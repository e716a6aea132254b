"""Every answer is kept: in a journal beside the results, so that a killed run goes on, and in a cache, so that nothing is asked twice.

Both hold one JSON object a line, {"key", "response"}; in a served model's journal a line {"finished"} ends a run. The key of a benchmark says everything
its answers depend on: weights, tokenizer, task settings, rows, mode, the longest sequence, and the code that asks. A torn last line (a kill
while writing) is left out and asked again.
Change here: what an answer's identity is. Not here: what is asked (questions.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.services.results import write_whole
from models.gauntlet.scoring import Response
from models.gauntlet.tasks import Benchmark

JOURNAL = "journal.jsonl"
_ROOT = Path(__file__).resolve().parents[2]
_ASKING = ("models", "jobs/evaluating", "jobs/lm_eval_command.py", "jobs/services/endpoint.py", "jobs/services/ray_scoring.py")


@cache
def code_digest(root: Path = _ROOT) -> str:
    """sha256 over models/, what asks under jobs/, and the versions of what computes: other code may answer otherwise."""
    total = hashlib.sha256("".join(f"{name} {metadata.version(name)}\n" for name in ("torch", "transformers", "tokenizers")).encode())
    for place in (root / name for name in _ASKING):
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            total.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return total.hexdigest()


def benchmark_key(benchmark: Benchmark, identity: Mapping[str, Any], mode: str) -> str:
    """sha256 hex of all that the answers to ``benchmark`` depend on; two different models, tasks or modes never share one."""
    rows = hashlib.sha256()
    for item in benchmark.items:
        rows.update(json.dumps([item.item_id, item.row], sort_keys=True).encode() + b"\n")
    what = {"model": dict(identity), "task": asdict(benchmark.task), "rows": rows.hexdigest(), "mode": mode, "code": code_digest()}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _line(key: str, response: Response) -> bytes:
    return json.dumps({"key": key, "response": asdict(response)}, ensure_ascii=True).encode() + b"\n"


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole JSON lines of a file (none, if it is not there)."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            if isinstance(found, dict) and line.endswith(b"\n"):
                yield found


def _response(raw: Any) -> Response | None:
    names = {f.name for f in fields(Response)}
    if not isinstance(raw, dict) or set(raw) != names:
        return None
    return Response(**{name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()})


class Journal:
    """The append-only journal of one output folder; held by one process at a time. A context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise MoelineError(f"Another evaluation is writing to {folder}. Wait for it, or give another --out.") from None
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        """What is appended after a torn line must not become part of it."""
        with self.path.open("rb") as written:
            size = written.seek(0, os.SEEK_END)
            if size and (written.seek(size - 1), written.read(1))[1] != b"\n":
                self._file.write(b"\n")
                self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def entries(self, *, unfinished_only: bool = False) -> dict[str, dict[str, Response]]:
        """key -> item id -> response of everything answered here before; ``unfinished_only``: since the last run that came to its end."""
        found: dict[str, dict[str, Response]] = {}
        for line in _lines(self.path):
            if unfinished_only and line.get("finished"):
                found = {}
            if (response := _response(line.get("response"))) is not None:
                found.setdefault(str(line.get("key")), {})[response.item_id] = response
        return found

    def append(self, key: str, responses: Iterable[Response]) -> None:
        """Write answers and flush them to disk: after this returns no kill loses them."""
        self._write(b"".join(_line(key, response) for response in responses))

    def finish(self) -> None:
        """The run has come to its end: its results are written."""
        self._write(json.dumps({"finished": True}).encode() + b"\n")

    def _write(self, lines: bytes) -> None:
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())


class Cache:
    """Answers by benchmark key in ``folder`` (None: no cache). Files appear whole."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _file(self, key: str) -> Path:
        assert self.folder is not None  # noqa: S101 - callers ask only when there is one
        return self.folder / key[:2] / f"{key}.jsonl"

    def load(self, key: str) -> dict[str, Response]:
        if self.folder is None:
            return {}
        responses = (_response(line.get("response")) for line in _lines(self._file(key)) if line.get("key") == key)
        return {r.item_id: r for r in responses if r is not None}

    def store(self, key: str, responses: Mapping[str, Response]) -> None:
        if self.folder is None:
            return
        merged = self.load(key) | dict(responses)
        write_whole(self._file(key), b"".join(_line(key, merged[i]) for i in sorted(merged)))
