"""A home's tables move from folders into a bucket and back, by migration and by backup; a kill in between leaves no home, and nobody's objects are touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import small_home
from s3_store import Store
from small_home import DAYS, NEWEST, publish, rows_by_day

from jobs import backup, migrate, restore
from jobs.contract import MoelineError, TableVersion
from jobs.environment import Environment
from jobs.services import delta, filled_store, results, table_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"), "warehouse")
    yield made
    made.end()


@pytest.fixture
def home(tmp_path: Path) -> Environment:
    return small_home.make(tmp_path / "old")


@pytest.fixture
def target(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setitem(fsspec.config.conf, "s3", store.settings)
    return store.environment(tmp_path, f"s3://warehouse/{tmp_path.name}")


def objects(store: Store, env: Environment) -> list[str]:
    return sorted(name.removeprefix("warehouse/") for name in store.files.find(env.tables.removeprefix("s3://")))


def check_whole(env: Environment) -> None:
    assert rows_by_day(env, TableVersion("fingerprints", 3)) == NEWEST
    assert rows_by_day(env, TableVersion("fingerprints", 2)) == {DAYS[0]: 3, DAYS[1]: 2}, "older versions too"
    assert [row["run_key"] for row in delta.rows(env, "checks")] == ["k"]
    assert [r.interval for r in results.of_stage(env, "deduplicate")] == list(DAYS)
    assert not table_store.is_there(table_store.root(env, ".unfinished-home"))
    assert rows_by_day(env, publish(env, "2026-01-03", 7)) == {**NEWEST, "2026-01-03": 7}


def test_a_home_moves_into_a_store_and_out_of_it_again(home, target, store, tmp_path):
    found = migrate.migrate(home, target)
    assert found["tables"]["fingerprints"] == {"version": 3, "rows": 7, "versions": 4, "removed": 0}
    assert table_store.folders(target.warehouse) == [] and not any(filled_store.MARK in name for name in objects(store, target))
    assert migrate.migrate(home, target)["already"]
    back = Environment.load("local", tmp_path / "back")
    assert migrate.migrate(target, back)["tables"] == found["tables"]
    home.home.rename(home.home.with_name("gone"))
    check_whole(back)
    assert rows_by_day(target, TableVersion("fingerprints", 3)) == NEWEST, "the source is as it was"
    check_whole(target)


def test_homes_that_name_the_same_store_share_its_tables(home, target, store, tmp_path):
    migrate.migrate(home, target)
    before = objects(store, target)
    beside = replace(target, home=tmp_path / "beside", **{name: tmp_path / "beside" / name for name in ("warehouse", "artifacts", "landing")})
    found = migrate.migrate(target, beside)
    assert found["tables"]["fingerprints"]["rows"] == 7 and objects(store, target) == before
    check_whole(beside)


def test_a_backup_of_tables_in_a_store_is_restored_into_another_store_and_into_folders(home, target, store, tmp_path):
    migrate.migrate(home, target)
    copied = Path(backup.backup(target, tmp_path / "backups")["folder"])
    assert backup.verify(copied)["tables"]["fingerprints"]["rows"] == 7
    other = replace(target, home=tmp_path / "other", tables=f"{target.tables}-other", **dict.fromkeys(("warehouse", "artifacts", "landing"), tmp_path))
    other = replace(other, **{name: other.home / name for name in ("warehouse", "artifacts", "landing")})
    for env in (other, Environment.load("local", tmp_path / "folders")):
        restore.restore(env, copied)
        check_whole(env)


def test_a_kill_between_two_objects_leaves_no_home_and_the_next_attempt_begins_anew(home, target, store, monkeypatch):
    put, done = table_store.put, []

    def killed(file: Path, to: Path) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(to)
        put(file, to)

    monkeypatch.setattr(table_store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate.migrate(home, target)
    assert not target.home.exists() and len(objects(store, target)) == 4
    store.files.pipe(f"{target.tables}/fingerprints/{DAYS[0]}/left.parquet", b"of the attempt before")
    monkeypatch.setattr(table_store, "put", put)
    migrate.migrate(home, target)
    assert not any("left" in name for name in objects(store, target))
    check_whole(target)


def test_a_place_that_is_not_empty_is_left_alone(home, target, store, tmp_path):
    store.files.pipe(f"{target.tables}/fingerprints/theirs", b"x")
    copied = Path(backup.backup(home, tmp_path / "backups")["folder"])
    for attempt in (lambda: migrate.migrate(home, target), lambda: restore.restore(target, copied)):
        with pytest.raises(MoelineError, match=r"puts tables into s3://warehouse/.*, which is not empty\. Nothing was changed"):
            attempt()
    assert [name.rpartition("/")[2] for name in objects(store, target)] == ["theirs"] and not target.home.exists()


def test_an_object_that_is_not_what_was_put_there_is_noticed(home, target, store, monkeypatch):
    put = table_store.put

    def altered(file: Path, to: Path) -> None:
        put(file, to)
        if to.name.endswith(".parquet"):
            store.files.pipe(to.path, b"other bytes")

    monkeypatch.setattr(table_store, "put", altered)
    with pytest.raises(MoelineError, match=r"is not what was put there \(sha256\)"):
        migrate.migrate(home, target)
    assert not target.home.exists()


def test_a_place_inside_the_old_one_is_refused(home, target, tmp_path):
    migrate.migrate(home, target)
    inside = replace(target, home=tmp_path / "in", tables=f"{target.tables}/inside", **{n: tmp_path / "in" / n for n in ("warehouse", "artifacts", "landing")})
    with pytest.raises(MoelineError, match="belongs to the old home"):
        migrate.migrate(target, inside)
