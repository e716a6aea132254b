"""The check server: the same verdicts as in this process, and never a wrong one in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expectations import check, serve
from expectations.tables import Column, Rule, Table

REPO = Path(__file__).resolve().parents[2]
SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])
TABLE = Table("things", "", ("id",), (Column("id", "string", ""), Column("n", "int64", "")), "run_key",
              (Rule("ExpectColumnValuesToBeBetween", {"column": "n", "min_value": 0}, "warning"),))  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    address = tmp_path_factory.mktemp("s") / "checks.sock"
    address.write_bytes(b"")  # what a killed server left
    process = subprocess.Popen([sys.executable, "-m", "expectations.serve", str(address)], cwd=REPO, start_new_session=True)
    deadline = time.monotonic() + 120
    while not address.is_socket():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    yield str(address)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


@pytest.fixture
def staged(tmp_path):
    pq.write_table(pa.table({"id": ["a", "b", "b"], "n": [1, -1, 2]}, SCHEMA), tmp_path / "part-0.parquet")
    return tmp_path


def test_same_verdicts_as_here(server, staged):
    found = serve.ask(server, TABLE, staged, SCHEMA)
    assert found == check.evaluate_files(TABLE, staged, SCHEMA)
    assert {r.rule for r in found if not r.passed} == {"ExpectColumnValuesToBeUnique(id)", "ExpectColumnValuesToBeBetween(n)"}
    assert found == check.evaluate(TABLE, pd.DataFrame({"id": ["a", "b", "b"], "n": [1, -1, 2]}), engine="pandas")


def test_the_socket_is_its_owners_only(server):
    assert Path(server).stat().st_mode & 0o077 == 0


def test_nobody_there_or_another_revision_is_no_answer(server, staged, tmp_path, monkeypatch):
    assert serve.ask(str(tmp_path / "nothing.sock"), TABLE, staged, SCHEMA) is None
    monkeypatch.setattr(serve, "REVISION", "edited since")
    assert serve.ask(server, TABLE, staged, SCHEMA) is None


def test_a_rule_nobody_knows_is_no_answer_and_then_an_error_here(server, staged):
    table = Table("things", "", (), (), "", (Rule("ExpectMagic", {}),))
    assert serve.ask(server, table, staged, SCHEMA) is None
    with pytest.raises(ValueError, match="Unknown expectation 'ExpectMagic'"):
        check.evaluate_files(table, staged, SCHEMA)


def test_garbage_and_silence_do_not_stop_it(server, staged):
    import socket

    for said in (b"", b"\xff\x00 not json\n", b"{}\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(server)
            connection.sendall(said)
    assert serve.ask(server, TABLE, staged, SCHEMA) is not None
