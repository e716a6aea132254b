"""Checks without the wait: a small server that has imported Great Expectations once (10 s of a core) and evaluates rules for others.

`python -m expectations.serve SOCKET` listens on a Unix socket in a folder only its owner can enter. Each request is evaluated in a
forked child, so that nothing piles up and a crash costs one answer. A client that gets no answer evaluates in its own process:
the server can change when a verdict comes, never what it is. Change here: how rules travel. Not here: how they are evaluated (check.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import socketserver
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expectations import check
from expectations.tables import Rule, Table

ANSWER_SECONDS = 600.0
_REQUEST_SECONDS = 5.0
# A server that outlives an edit of these files would judge by the old ones: it is then not asked.
REVISION = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (check.__file__, __file__))).hexdigest()


def ask(address: str, table: Table, folder: Path, schema: Any) -> list[check.CheckResult] | None:
    """What ``check.evaluate_files`` would return, from the server at ``address``; None when there is no server, or another revision of it."""
    request = {
        "revision": REVISION, "table": table.name, "rules": [asdict(rule) for rule in table.all_rules], "columns": check.columns_needed(table),
        "folder": str(folder), "schema": schema.serialize().to_pybytes().hex(),
    }  # fmt: skip
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answer:
                found = json.loads(answer.readline())
        return [check.CheckResult(**result) for result in found["results"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["revision"] != REVISION:
        return {"error": "another revision"}
    import pyarrow as pa

    rules = [Rule(**rule) for rule in request["rules"]]
    schema = pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(request["schema"])))
    frame = check.read_files(Path(request["folder"]), schema, request["columns"])
    return {"results": [asdict(result) for result in check.evaluate_rules(request["table"], rules, frame, engine="pandas")]}


class _Handler(socketserver.StreamRequestHandler):
    timeout = _REQUEST_SECONDS

    def handle(self) -> None:
        try:
            answer = _answer(json.loads(self.rfile.readline()))
        except Exception as error:  # the client evaluates itself, and sees the same error there
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Evaluates each request in a child; a connection that says nothing (a health probe) costs no child."""

    max_children = 8
    request_queue_size = 64

    def verify_request(self, request: Any, client_address: Any) -> bool:
        request.settimeout(_REQUEST_SECONDS)
        try:
            return bool(request.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        print(f"A request failed: {sys.exception()!r}", file=sys.stderr, flush=True)


def main(address: str) -> None:
    """Serve until told to stop."""
    check.load()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)  # of a server that was killed; the platform runs one per home
    before = os.umask(0o177)
    with Server(address, _Handler) as server:
        os.umask(before)
        server.serve_forever(poll_interval=1.0)


if __name__ == "__main__":
    main(sys.argv[1])
