"""Tables in a bucket, over S3's protocol from a server in a process of its own: written, joined, forgotten from, cleaned and upgraded as in folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import arrow_stages
import fsspec
import old_tables
import pyarrow.parquet as pq
import pytest
import small_home
from s3_store import Store, free_port

from expectations.tables import TABLES
from jobs import forget, gc, history, purge, recipes, run
from jobs.contract import CommitConflict, MoelineError, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import compaction, delta, kept, report, shared_costs, spark, table_files, table_migrations, table_store

DAY, NEXT, KEY = "2026-01-01", "2026-01-02", "not-a-secret"
APPENDER = """
import sys
from jobs.environment import Environment
from jobs.services import compaction, delta
compaction.FILES = 8
env = Environment.load(sys.argv[1], sys.argv[2])
for number in range(int(sys.argv[4])):
    name = f"{sys.argv[3]}-{number}"
    delta.append(env, "checks", [{"run_key": name, "rule": "r", "passed": True}], once=name)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"), "warehouse")
    yield made
    made.end()


@pytest.fixture
def env(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """A home of its own with its tables in a folder of the bucket."""
    monkeypatch.setitem(fsspec.config.conf, "s3", store.settings)
    return store.environment(tmp_path, f"s3://warehouse/{tmp_path.name}")


def objects(store: Store, env: Environment) -> set[str]:
    top = env.tables.removeprefix("s3://")
    return {name.removeprefix(f"{top}/") for name in store.files.find(top)}


def append(env: Environment, number: int) -> None:
    delta.append(env, "checks", [{"run_key": f"k{number}", "rule": "r", "passed": True}], once=f"k{number}")


def keys(env: Environment) -> list[str]:
    return sorted(row["run_key"] for row in delta.rows(env, "checks"))


def test_a_published_day_is_replaced_in_one_commit_and_its_older_version_stays_readable(env, store):
    first = small_home.publish(env, DAY, 3)
    second = small_home.publish(env, NEXT, 2)
    third = small_home.publish(env, DAY, 5)
    assert [small_home.rows_by_day(env, v) for v in (first, second, third)] == [{DAY: 3}, {DAY: 3, NEXT: 2}, {DAY: 5, NEXT: 2}]
    assert not (env.warehouse / "fingerprints").exists() and list((env.warehouse / "_staging").rglob("*.parquet")) == []
    assert len(delta.rows(env, "fingerprints", where_in=[NEXT])) == 2
    assert table_files.rows_by_version(table_store.root(env, "fingerprints")) == {0: 0, 1: 3, 2: 5, 3: 7}
    folder = env.warehouse / "_staging" / "late"
    folder.mkdir()
    with pytest.raises(CommitConflict, match="fingerprints moved"):
        delta.publish(env, "fingerprints", folder, partition_value=DAY, metadata={}, expected=second)


def test_rows_are_those_of_the_same_table_in_a_folder(env, tmp_path):
    here = Environment.load("local", tmp_path / "here")
    for one in (env, here):
        for day, rows in ((DAY, 4), (NEXT, 6), (DAY, 5)):
            small_home.publish(one, day, rows)
        for number in range(3):
            append(one, number)
    for name in ("fingerprints", "checks"):
        assert kept.Kept().rows(env, name) == delta.rows(env, name), name

        def ordered(one: Environment, name: str = name) -> list[str]:
            return sorted(str(row) for row in delta.rows(one, name))

        assert ordered(env) == ordered(here), name
    version = delta.latest(env, "fingerprints")
    by_day = delta.files_by_partition(env, version)
    assert {day: delta.of_files(env, version, files).count_rows() for day, files in by_day.items()} == {DAY: 5, NEXT: 6}


def test_three_processes_append_and_join_and_nothing_is_lost_or_doubled(env, store):
    command = [sys.executable, "-c", APPENDER, str(env.home.parent / "store.toml"), str(env.home)]
    variables = {**os.environ, **store.variables, "PYTHONPATH": str(REPO)}
    writers = [subprocess.Popen([*command, name, "12"], env=variables, cwd=REPO) for name in "abc"]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0, 0]
    assert keys(env) == sorted(f"{name}-{number}" for name in "abc" for number in range(12))
    assert len(delta.open_table(env, "checks").file_uris()) < 8 + 3


def test_what_no_commit_names_goes_and_nothing_else(env, store, monkeypatch):
    monkeypatch.setattr(compaction, "FILES", 4)
    small_home.publish(env, DAY, 3)
    for number in range(5):
        append(env, number)
    gc.collect(env, older_than_seconds=0)
    before = objects(store, env)
    left = {f"fingerprints/interval={DAY}/0123.parquet", "checks/part-1.snappy.parquet", "fingerprints/_delta_log/_commit_6a.json.tmp"}
    for name in left:
        store.files.pipe(f"{env.tables}/{name}", b"left")
    assert gc.collect(env, older_than_seconds=0, dry_run=True)["counts"]["rows never published"] == 2
    assert objects(store, env) == before | left
    found = gc.collect(env, older_than_seconds=0)
    assert (found["counts"], found["bytes"]) == ({"rows never published": 2, "unfinished commits": 1}, 12)
    assert objects(store, env) == before and len(keys(env)) == 5
    replaced = gc.Found()
    history._replaced_files(env, "checks", replaced, time.time() + 60)
    assert replaced.counts == {"files of checks that were joined": 4} and len(keys(env)) == 5


def test_the_store_is_weighed_and_a_report_notices_a_commit(env, store):
    small_home.publish(env, DAY, 3)
    size = sum(store.files.info(f"{env.tables}/{name}")["size"] for name in objects(store, env))
    beside = sum(file.lstat().st_size for file in env.warehouse.rglob("*") if file.is_file())
    assert shared_costs.stored_bytes(env) == size + beside
    before = report.state(env)
    append(env, 1)
    assert before is not None and report.state(env) not in (None, before)


def test_a_document_that_is_forgotten_is_in_no_object(env, store, monkeypatch):
    monkeypatch.setattr(run, "stage_module", arrow_stages.module)
    monkeypatch.setattr(run, "check_staged", lambda *_: {})
    monkeypatch.setattr(run, "_warm_up_checks", lambda *_: None)
    texts = {DAY: ["my name is Quetzalcoatl", *(f"plain words {n}" for n in range(6))], NEXT: [f"other words {n}" for n in range(3)]}
    for day, lines in texts.items():
        file = env.landing / "web" / day / "a.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps({"text": text, "uri": f"u:{day}-{n}"}) + "\n" for n, text in enumerate(lines)))
    arrow_stages.prepare(env, recipes.load("smoke"), texts)
    target = next(row["doc_id"] for row in delta.rows(env, "documents") if "Quetzalcoatl" in row["text"])
    assert holding(store, env, "Quetzalcoatl")
    found = forget.forget(env, target, here=True)
    assert (found["gone"], found["left"], found["prepared_again"]) == (True, [], [f"smoke {DAY}"])
    assert holding(store, env, "Quetzalcoatl") == [] == holding(store, env, target)
    assert len(delta.rows(env, "documents")) == 9 and forget.check(env, target)["exit_status"] == 0
    assert purge.left(env, [delta.rows(env, "documents")[0]["doc_id"]])[0]["file"].startswith(f"{env.tables}/")


def holding(store: Store, env: Environment, word: str) -> list[str]:
    found = []
    for name in objects(store, env):
        with store.files.open(f"{env.tables}/{name}") as file:
            text = str(pq.read_table(file).to_pylist()) if name.endswith(".parquet") and "_delta_log" not in name else file.read().decode(errors="replace")
            found += [name] if word in text else []
    return found


@pytest.mark.parametrize(("name", "version"), old_tables.EARLIER)
def test_a_table_of_an_earlier_release_is_brought_up_to_date(env, store, name, version, tmp_path):
    here = Environment.load("local", tmp_path / "here")
    old_tables.write(here, name, version)
    store.files.put(f"{here.warehouse / name}/", f"{env.tables}/{name}/", recursive=True)
    for one in (here, env):
        table_migrations.upgrade(one)
        assert table_migrations.pending(one, name) is None
    assert old_tables.ordered(delta.rows(env, name)) == old_tables.ordered(delta.rows(here, name))


def test_what_the_store_does_not_do_is_told_and_never_taken_for_an_empty_table(env, monkeypatch):
    append(env, 1)
    elsewhere = replace(env, tables="s3://no-such-bucket/t")
    for ask in (lambda: delta.rows(elsewhere, "checks"), lambda: append(elsewhere, 1), lambda: small_home.publish(elsewhere, DAY, 1)):
        with pytest.raises(MoelineError, match=r"s3://no-such-bucket/t, did not do what was asked.* does the bucket exist"):
            ask()
    monkeypatch.setitem(fsspec.config.conf["s3"], "endpoint_url", f"http://127.0.0.1:{free_port()}")
    for ask in (lambda: delta.latest(env, "checks"), lambda: table_store.roots(env)):
        with pytest.raises(MoelineError, match="did not do what was asked"):
            ask()


def test_no_key_is_in_a_setting_that_a_session_can_read(env):
    assert KEY not in str(spark.spark_conf(env)) and spark.spark_environment(env)["AWS_SECRET_ACCESS_KEY"] == KEY
    assert spark.spark_conf(env)["spark.hadoop.fs.s3a.path.style.access"] == "true"
    here = replace(env, tables=None)
    assert not any("s3a" in key for key in spark.spark_conf(here)) and "AWS_SECRET_ACCESS_KEY" not in spark.spark_environment(here)


@pytest.mark.parametrize("given", ["tables", "s3://", "s3://bucket", "s3://Bucket/x", "s3://b/x?y", "gs://bucket/x", "s3://bucket/../x", 3])
def test_a_place_that_is_none_is_refused(tmp_path, given):
    file = tmp_path / "wrong.toml"
    file.write_text((REPO / "infra/env/local.toml").read_text().replace("[paths]", f"[paths]\ntables = {json.dumps(given)}"))
    with pytest.raises(MoelineError, match='"s3://bucket/tables"'):
        Environment.load(str(file), tmp_path / "home")


def test_every_table_has_its_own_folder(env):
    assert {table_store.address(env, name) for name in TABLES} == {f"{env.tables}/{name}" for name in TABLES}
    assert delta.latest(env, "costs") is None and table_store.roots(env) == []
    small_home.publish(env, DAY, 1)
    assert [root.name for root in table_store.roots(env)] == ["fingerprints"]
    assert delta.latest(env, "fingerprints") == TableVersion("fingerprints", 1)
