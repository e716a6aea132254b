"""Publishing on real Delta tables, read back by delta-rs, by DuckDB and by Polars."""

import json
import threading
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import CommitConflict, MoelineError, TableVersion
from jobs.services import delta


def staged(folder: Path, rows: int) -> Path:
    folder.mkdir(parents=True)
    names = [str(k) for k in range(rows)]
    pq.write_table(pa.table({"band": pa.array(range(rows), pa.int32()), "hash": pa.array(range(rows), pa.int64()), "doc_id": names}), folder / "a.parquet")
    return folder


def publish(env, tmp_path, day, rows, **kwargs):
    publish.count += 1
    return delta.publish(
        env, "fingerprints", staged(tmp_path / f"s{publish.count}", rows), partition_value=day, metadata={"run_key": f"{day}/{rows}"}, **kwargs
    )


publish.count = 0


def rows_per_day(env, version):
    found = delta.dataset(env, version).to_table(columns=["interval"]).column(0).to_pylist()
    return {day: found.count(day) for day in sorted(set(found))}


def test_a_re_run_replaces_exactly_its_day(env, tmp_path):
    publish(env, tmp_path, "2026-01-01", 3)
    before = publish(env, tmp_path, "2026-01-02", 2)
    after = publish(env, tmp_path, "2026-01-01", 5)
    assert rows_per_day(env, after) == {"2026-01-01": 5, "2026-01-02": 2}
    assert rows_per_day(env, before) == {"2026-01-01": 3, "2026-01-02": 2}, "old versions stay readable"


def test_an_earlier_day_after_a_later_one_is_not_dropped(env, tmp_path):
    publish(env, tmp_path, "2026-01-09", 1)
    assert rows_per_day(env, publish(env, tmp_path, "2026-01-01", 4)) == {"2026-01-01": 4, "2026-01-09": 1}


def test_an_empty_day_empties_the_partition(env, tmp_path):
    publish(env, tmp_path, "2026-01-01", 3)
    assert rows_per_day(env, publish(env, tmp_path, "2026-01-01", 0)) == {}


def test_days_published_at_once_all_arrive_under_their_own_version(env, tmp_path):
    versions = {}

    def go(day):
        for rows in range(1, 5):
            versions[day, rows] = publish(env, tmp_path / day, day, rows)

    threads = [threading.Thread(target=go, args=(f"2026-01-0{i}",)) for i in (1, 2, 3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(versions.values())) == 12
    assert rows_per_day(env, max(versions.values())) == {"2026-01-01": 4, "2026-01-02": 4, "2026-01-03": 4}
    log = Path(delta.uri(env, "fingerprints")) / "_delta_log"
    for (day, rows), version in versions.items():
        assert f"{day}/{rows}" in (log / f"{version.version:020d}.json").read_text()


def test_a_table_that_moved_refuses_the_commit(env, tmp_path):
    read = publish(env, tmp_path, "2026-01-01", 3)
    publish(env, tmp_path, "2026-01-02", 3)
    with pytest.raises(CommitConflict, match="moved"):
        publish(env, tmp_path, "2026-01-03", 3, expected=read)
    now = delta.latest(env, "fingerprints")
    assert rows_per_day(env, publish(env, tmp_path, "2026-01-03", 1, expected=now)) == {"2026-01-01": 3, "2026-01-02": 3, "2026-01-03": 1}


def test_appending_with_an_id_happens_once(env):
    row = {
        "run_key": "k",
        "stage": "clean",
        "attempt_id": "a",
        "table_name": "t",
        "rule": "r",
        "severity": "error",
        "observed": "1",
        "passed": True,
        "failed_rows": 0,
    }
    for _ in range(3):
        delta.append(env, "checks", [row], once="checks/a")
    delta.append(env, "checks", [row], once="checks/b")
    assert len(delta.rows(env, "checks")) == 2


def test_duckdb_reads_the_same_rows(env, tmp_path):
    publish(env, tmp_path, "2026-01-01", 3)
    publish(env, tmp_path, "2026-01-01", 2)
    version = publish(env, tmp_path, "2026-01-02", 7)
    # DuckDB's own Delta extension is downloaded at run time; the log itself names the live files, which DuckDB then reads.
    files = [f.removeprefix("file://") for f in delta.open_table(env, "fingerprints", version.version).file_uris()]
    found = duckdb.execute("select interval, count(*), sum(hash) from read_parquet(?, hive_partitioning=true) group by 1 order by 1", [files]).fetchall()
    assert [(str(day), n, total) for day, n, total in found] == [("2026-01-01", 2, 1), ("2026-01-02", 7, 21)]


def test_polars_opens_the_table_and_its_older_versions(env, tmp_path):
    publish(env, tmp_path, "2026-01-01", 3)
    before = publish(env, tmp_path, "2026-01-02", 7)
    publish(env, tmp_path, "2026-01-01", 2)

    def counted(version: int | None) -> list[tuple[str, int, int]]:
        rows = pl.scan_delta(delta.uri(env, "fingerprints"), version=version)
        return rows.group_by("interval").agg(pl.len(), pl.col("hash").sum()).sort("interval").collect().rows()

    assert counted(None) == [("2026-01-01", 2, 1), ("2026-01-02", 7, 21)]
    assert counted(before.version) == [("2026-01-01", 3, 3), ("2026-01-02", 7, 21)]


def test_commit_carries_the_run_key(env, tmp_path):
    publish(env, tmp_path, "2026-01-01", 3)
    entry = delta.open_table(env, "fingerprints").history(1)[0]
    assert json.loads(entry["userMetadata"])["run_key"] == "2026-01-01/3"


def test_unknown_tables_and_versions_say_so(env, tmp_path):
    with pytest.raises(MoelineError, match="Known tables"):
        delta.uri(env, "document")
    publish(env, tmp_path, "2026-01-01", 3)
    with pytest.raises(MoelineError, match="fingerprints@99"):
        delta.dataset(env, TableVersion("fingerprints", 99))


def test_rows_are_what_arrow_says_value_by_value(env):
    import datetime as dt

    import pyarrow.dataset as ds

    from expectations.tables import TABLES

    at = dt.datetime(2026, 11, 1, 12, 0, 0, 123457, tzinfo=dt.UTC)
    made = {
        "float64": [0.1, -1.5],
        "int64": [2**53 + 1, -1],
        "int32": [1, 2],
        "string": ["a\U0001f600", ""],
        "timestamp": [at, at + dt.timedelta(microseconds=1)],
    }
    filled = [{c.name: made[c.type][i] for c in TABLES["costs"].columns} for i in range(2)]
    empty = {c.name: None if c.nullable else made[c.type][0] for c in TABLES["costs"].columns}
    delta.append(env, "costs", [*filled, empty])
    found = delta.rows(env, "costs")
    expected = delta.dataset(env, delta.latest(env, "costs")).to_table().to_pylist()
    assert found == expected
    assert [[type(v) for v in row.values()] for row in found] == [[type(v) for v in row.values()] for row in expected]
    assert delta.rows(env, "costs", columns=("BilledCost", "x_RunKey"), where=ds.field("x_RunKey").is_null()) == [{"BilledCost": 0.1, "x_RunKey": None}]
