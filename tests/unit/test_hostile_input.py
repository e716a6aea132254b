"""Hostile and broken landing files: each is read right or quarantined with a reason, in bounded memory; files that change while they are read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import KINDS, LAST, LIMIT, N_NOISE, NOISE, ROW, TABLE, parquet, zst

from jobs.environment import REPO
from jobs.services.landing import files as landed_files
from jobs.services.readers import RAW_BYTES, read

MAX_GROWTH_MB = 220  # of a reader over what its process holds before: a Parquet page is decoded whole, zstd gives up to 32 MiB per piece of input
BIG = {"a line of 100 MB", "a gzip bomb", "a zstd bomb", "a text bomb", "Parquet with a row of 30 MB"}
_CHILD = """
import json, os, resource, sys, pyarrow.parquet, zstandard
from pathlib import Path
from jobs.services.readers import read
status = lambda name: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
limit, file, max_bytes = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
before = status("VmRSS:")
most = status("VmSize:") * 1024 + 2 * (limit << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
found = [(r.text[:50], r.error, len(r.raw)) for r in read(file, os.path.basename(file), text_column="text", max_bytes=max_bytes)]
print(json.dumps({"found": found, "growth_mb": (status("VmHWM:") - before) / 1024}))
"""


def test_there_are_at_least_sixty_kinds():
    assert len(KINDS) >= 60


def check(kind: str, found: list[tuple[str, str | None, int]]) -> None:
    asked = KINDS[kind]
    assert tuple(text for text, error, _ in found if error is None) == asked.texts
    errors = [error for _, error, _ in found if error is not None]
    assert len(errors) == len(asked.reasons), errors
    for error, reason in zip(errors, asked.reasons, strict=True):
        assert error.startswith(reason)
    assert all(n_raw <= RAW_BYTES for _, _, n_raw in found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BIG])
def test_a_file_is_read_right_or_quarantined_with_a_reason(tmp_path, kind):
    file = tmp_path / KINDS[kind].name
    KINDS[kind].write(file)
    check(kind, [(r.text, r.error, len(r.raw)) for r in read(str(file), f"web/2026-11-01/{file.name}", text_column="text", max_bytes=LIMIT)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name]  # nothing was unpacked or run beside it


@pytest.mark.parametrize("kind", sorted(BIG))
def test_memory_stays_bounded_whatever_a_file_unpacks_to(tmp_path, kind):
    file = tmp_path / KINDS[kind].name
    KINDS[kind].write(file)
    run = subprocess.run([sys.executable, "-c", _CHILD, str(MAX_GROWTH_MB), str(file), str(LIMIT)], cwd=REPO, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-1500:]
    answer = json.loads(run.stdout)
    check(kind, [tuple(record) for record in answer["found"]])
    assert answer["growth_mb"] < MAX_GROWTH_MB


def opened(file: Path, content: bytes):
    """The records of a file of which the first has been read."""
    file.write_bytes(content)
    records = read(str(file), file.name, text_column="text", max_bytes=LIMIT)
    return next(records), records


BIG_CONTENT = NOISE * 20  # several read buffers


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zst)])
def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(tmp_path, name, pack):
    first, rest = opened(tmp_path / name, pack(BIG_CONTENT))
    (tmp_path / name).unlink()
    assert [first.text, *(r.text for r in rest)] == list(N_NOISE) * 20


def test_a_file_that_is_cut_while_it_is_read_keeps_the_records_before(tmp_path):
    first, rest = opened(tmp_path / "a.jsonl", BIG_CONTENT)
    os.truncate(tmp_path / "a.jsonl", 1_500_000)
    found = [first, *rest]
    assert [r.text for r in found[:-1]] == (list(N_NOISE) * 20)[: len(found) - 1]
    assert found[-1].error.startswith("invalid JSON")


def test_a_file_that_is_overwritten_while_it_is_read_gives_records_or_reasons(tmp_path):
    first, rest = opened(tmp_path / "a.jsonl", BIG_CONTENT)
    with open(tmp_path / "a.jsonl", "r+b") as handle:
        handle.write(b"\xff" * len(BIG_CONTENT))
    found = [first, *rest]
    assert all(r.error or r.text in N_NOISE for r in found)
    assert found[-1].error is not None


def test_a_file_that_grows_while_it_is_read_gives_whole_records(tmp_path):
    first, rest = opened(tmp_path / "a.jsonl", BIG_CONTENT)
    with open(tmp_path / "a.jsonl", "ab") as handle:
        handle.write(LAST)
    assert [first.text, *(r.text for r in rest)] == [*(list(N_NOISE) * 20), "last"]


def test_a_parquet_file_that_is_overwritten_while_it_is_read_gives_records_or_a_reason(tmp_path):
    import pyarrow as pa

    table = pa.table({"text": list(N_NOISE) * 60})
    first, rest = opened(tmp_path / "a.parquet", parquet(table, row_group_size=1000, use_dictionary=False, compression="none"))
    os.truncate(tmp_path / "a.parquet", 2000)
    found = [first, *rest]
    assert found[-1].error.startswith("broken Parquet from row ")
    assert [r.text for r in found[:-1]] == (list(N_NOISE) * 60)[: len(found) - 1]


def test_only_plain_files_inside_the_landing_zone_land(env, tmp_path):
    """Links, pipes, folders with a file's name and files still being written are no landed files."""
    folder = env.landing / "web" / "2026-11-01"
    (folder / "deeper").mkdir(parents=True)
    (folder / "good.jsonl").write_bytes(ROW)
    (folder / "deeper" / "good.parquet").write_bytes(parquet(TABLE))
    (folder / ".half.jsonl").write_bytes(ROW)
    (folder / "folder.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to("/etc/passwd")
    (folder / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.jsonl")
    assert [file.relative for file in landed_files(env, "2026-11-01")] == ["web/2026-11-01/deeper/good.parquet", "web/2026-11-01/good.jsonl"]
