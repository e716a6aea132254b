"""A home goes on under another environment file: every file and row, wherever that is killed; the old one as it was, nothing of anybody's overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_home
from moved_homes import environment_file
from small_home import DAYS, NEWEST, publish, rows_by_day

from jobs import cli, migrate, recipes, restore, run
from jobs.contract import MoelineError, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import backup_folder, delta, platform, process_identity, results, table_files, unfinished_home


@pytest.fixture
def home(tmp_path) -> Environment:
    return small_home.make(tmp_path / "home")


@pytest.fixture
def target(tmp_path) -> Environment:
    """Tables and artifacts on other disks, the landing zone in the new home."""
    file = environment_file(tmp_path / "cluster.toml", warehouse=tmp_path / "disk1" / "tables", artifacts=tmp_path / "disk2" / "files")
    return Environment.load(str(file), tmp_path / "new")


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mode of every file, but locks, which a reader takes as well."""
    files = {n: f for n, f in backup_folder.regular_files(folder) if "_locks/" not in n and n != "up.lock"}
    return {name: (file.read_bytes(), file.stat().st_mode) for name, file in files.items()}


def check_whole(env: Environment) -> None:
    """What small_home made is in ``env``, and it goes on."""
    assert rows_by_day(env, TableVersion("fingerprints", 3)) == NEWEST
    assert rows_by_day(env, TableVersion("fingerprints", 2)) == {DAYS[0]: 3, DAYS[1]: 2}, "older versions too"
    assert [r.interval for r in results.of_stage(env, "deduplicate")] == list(DAYS)
    assert results.writer_of(env, TableVersion("fingerprints", 2)).interval == DAYS[1]
    assert (env.artifacts / "checkpoints" / "k1" / "step-0000000010" / "state.json").read_text() == '{"step": 10}'
    for name in ("keys/model-signing.pem", "airflow/passwords.json", "airflow/keys/fernet", "mlflow/password"):
        assert (env.home / name).read_text() == f"secret of {name}"
    for place in (env.home, env.warehouse, env.artifacts):
        assert not (place / unfinished_home.MARK).exists() and not (place / backup_folder.LOCK).exists()
        assert not list(place.parent.glob(".*.restoring"))
    unfinished_home.refuse(env)
    assert rows_by_day(env, publish(env, "2026-01-03", 7)) == {**NEWEST, "2026-01-03": 7}


def test_a_home_moves_to_other_disks(home, target):
    before = everything(home.home)
    found = migrate.migrate(home, target)
    assert found["tables"]["fingerprints"] == {"version": 3, "rows": 7, "versions": 4, "removed": 0}
    assert found["landing"] == "copied" and found["databases"] == {} and not found["already"]
    assert everything(home.home) == before, "the source is as it was"
    with small_home.by_hand(target) as database:
        places = [place for (place,) in database.execute("SELECT artifact_location FROM experiments")]
    assert places == [f"{target.artifacts.as_uri()}/mlflow", "mlflow-artifacts:/1", f"{home.artifacts.as_uri()}-of-another/mlflow"]
    assert sorted(f.name for f in (target.landing / "prose" / DAYS[0]).iterdir()) == ["a.jsonl"]
    assert not (target.home / "warehouse").exists() and not (target.home / "logs").exists() and not (target.home / "platform.json").exists()
    home.home.rename(home.home.with_name("gone"))  # whatever names the old place by its path fails from here on
    check_whole(target)


def test_the_same_again_tells_so_and_changes_nothing(home, target):
    first = migrate.migrate(home, target)
    before = everything(target.home) | everything(target.warehouse)
    again = migrate.migrate(home, target)
    assert again["already"] and {**again, "seconds": 0, "already": 0} == {**first, "seconds": 0, "already": 0}
    assert everything(target.home) | everything(target.warehouse) == before
    other = small_home.make(home.home.with_name("other"))
    with pytest.raises(MoelineError, match=r"makes a new home, and its home .*new is not empty. Nothing was changed"):
        migrate.migrate(other, target)


def test_a_forgotten_document_is_missing_on_both_sides(home, target):
    old = [Path(f) for f in delta.open_table(home, "fingerprints").file_uris()]
    publish(home, DAYS[0], 1)
    gone = next(file for file in old if DAYS[0] in str(file))
    gone.unlink()
    found = migrate.migrate(home, target)
    assert found["tables"]["fingerprints"] == {"version": 4, "rows": 3, "versions": 5, "removed": 1}
    assert rows_by_day(target, TableVersion("fingerprints", 4)) == {DAYS[0]: 1, DAYS[1]: 2}


def test_rows_of_every_version_are_counted(home):
    root = home.warehouse / "fingerprints"
    assert table_files.rows_by_version(root) == {0: 0, 1: 3, 2: 5, 3: 7}
    delta.open_table(home, "fingerprints").create_checkpoint()
    publish(home, DAYS[1], 8)
    for version in range(3):
        (root / table_files.LOG / f"{version:020}.json").unlink()
    (root / table_files.LOG / f"{3:020}.json").unlink()
    assert table_files.rows_by_version(root) == {4: 13}
    assert table_files.rows_by_version(home.warehouse / "nothing") == {}


# -- the landing zone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("landing", "said"),
    [("s3://bucket/landing", "not copied: the new home reads s3://bucket/landing; put the files of .*home/landing there"), ("same", "not copied: both read ")],
)
def test_a_landing_zone_elsewhere_is_only_named_anew(home, tmp_path, landing, said):
    file = environment_file(tmp_path / "cloud.toml", landing=home.landing if landing == "same" else landing)
    target = Environment.load(str(file), tmp_path / "new")
    found = migrate.migrate(home, target)
    assert re.match(said, found["landing"])
    assert not (target.home / "landing").exists() and home.landing.is_dir()
    check_whole(target)


def test_without_the_landing_zone(home, target):
    assert "put the files of" in migrate.migrate(home, target, landing=False)["landing"]
    assert not target.landing.exists()


# -- refused ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(home, target):
    for place in (target.warehouse, target.artifacts, target.home, target.landing):
        small_home.write(place / "mine.txt", "mine")
        with pytest.raises(MoelineError, match="is not empty"):
            migrate.migrate(home, target)
        assert (place / "mine.txt").read_text() == "mine" and not list(place.parent.glob(".*.restoring"))
        shutil.rmtree(place)
    migrate.migrate(home, target)
    check_whole(target)


def test_places_that_overlap_are_refused(home, tmp_path):
    def to(new: Path, **paths) -> Environment:
        return Environment.load(str(environment_file(tmp_path / "x.toml", **paths)), new)

    for target in (to(home.home), to(home.warehouse / "new"), to(tmp_path / "new", warehouse=home.warehouse), to(home.home.parent)):
        with pytest.raises(MoelineError, match="belongs to the old home"):
            migrate.migrate(home, target)
    with pytest.raises(MoelineError, match="which is no folder"):
        migrate.migrate(Environment.load("local", tmp_path / "nothing"), to(tmp_path / "new"))


def test_services_of_somebody_else_are_not_copied(home, tmp_path):
    registry = Environment.load(str(environment_file(tmp_path / "a.toml", services={"mlflow_uri": "https://host"})), tmp_path / "new")
    with pytest.raises(MoelineError, match="Give both environments the same mlflow_uri"):
        migrate.migrate(home, registry)
    with_server = Environment.load(str(environment_file(tmp_path / "b.toml", services={"postgres_url": "postgresql://u@127.0.0.1:1/x"})), home.home)
    with pytest.raises(MoelineError, match="name one in the environment file"):
        migrate.migrate(with_server, Environment.load("local", tmp_path / "new"))
    with pytest.raises(MoelineError, match=r"airflow at 127.0.0.1:1 was asked for: .* CREATE DATABASE airflow"):
        migrate.migrate(home, Environment.load(str(tmp_path / "b.toml"), tmp_path / "new"))
    for url in ("mysql://u@host/x", "no url", "postgresql://u@host:port/x"):
        env = Environment.load(str(environment_file(tmp_path / "c.toml", services={"postgres_url": url})), tmp_path / "new")
        with pytest.raises(MoelineError, match="postgres_url of the environment file is no"):
            migrate.migrate(home, env)
    assert not (tmp_path / "new").exists()


def test_a_home_in_use_is_refused(home, target):
    running = {"pid": os.getpid(), "started": process_identity.started(os.getpid())}
    (home.home / "platform.json").write_text(json.dumps({"supervisor": running}))
    with pytest.raises(MoelineError, match=f"is running, and what it writes now would stay behind. Stop it: moeline down --home {home.home}"):
        migrate.migrate(home, target)
    (home.home / "platform.json").unlink()
    small_home.attempt(home, "a2", pid=os.getpid(), process_started_at=process_identity.started(os.getpid()))
    with pytest.raises(MoelineError, match="Stage clean is running"):
        migrate.migrate(home, target)
    assert not target.home.exists() and not target.warehouse.exists()


def test_a_disk_that_writes_something_else_is_noticed(home, target, monkeypatch):
    real = backup_folder.altered

    def damaged(files, place, progress):
        name = next(n for n in files if n.endswith("model.safetensors"))
        place(name).write_bytes(b"x" * files[name].size)
        return real(files, place, progress)

    monkeypatch.setattr(backup_folder, "altered", damaged)
    with pytest.raises(MoelineError, match=r"1 files are not what was copied \(sha256\): artifacts/.*model.safetensors"):
        migrate.migrate(home, target)
    assert not target.home.exists() and not target.warehouse.exists() and not target.artifacts.exists()


def test_a_table_that_changes_meanwhile_is_noticed(home, target, monkeypatch):
    real = migrate._compare_files
    monkeypatch.setattr(migrate, "_compare_files", lambda copies, echo: (real(copies, echo), publish(home, DAYS[1], 9)))
    with pytest.raises(MoelineError, match=r"fingerprints@4 had 14 rows and came over with None. .*Does anybody write to"):
        migrate.migrate(home, target)
    assert not target.home.exists()


# -- killed -----------------------------------------------------------------------------------------------------------------

KILL = """
import os, pathlib, signal, sys
from jobs import migrate
from jobs.environment import Environment
from jobs.services import backup_folder
what, count, home, file, new = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
owner, name = {
    "copy": (backup_folder, "copied"), "compare": (migrate, "_compare_tables"), "receipt": (migrate, "write_whole"), "rename": (os, "rename"),
    "unlink": (pathlib.Path, "unlink"), "done": (migrate, "_release"),
}[what]
real, calls = getattr(owner, name), []
def dies(*args, **kwargs):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(owner, name, dies)
migrate.migrate(Environment.load("local", home), Environment.load(file, new))
"""


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("copy", 1),
        ("copy", 15),
        ("compare", 1),
        ("receipt", 1),
        ("rename", 1),
        ("rename", 2),
        ("rename", 3),
        ("unlink", 2),
        ("unlink", 3),
        ("unlink", 5),
        ("done", 1),
    ],
)
def test_killed_and_run_again(home, target, tmp_path, what, count):
    before = everything(home.home)
    command = [sys.executable, "-c", KILL, what, str(count), str(home.home), str(tmp_path / "cluster.toml"), str(target.home)]
    done = subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = (target.home / migrate.RECEIPT).exists() and not (target.home / unfinished_home.MARK).exists()
    assert whole == ((what, count) in (("unlink", 3), ("unlink", 5), ("done", 1)))
    if target.home.exists() and not whole:
        for start in (lambda: platform.up(target), lambda: run.run_stage(target, "train", recipes.load("smoke"))):
            with pytest.raises(MoelineError, match=r"is not whole: .*Run it again"):
                start()
    assert everything(home.home) == before
    again = migrate.migrate(home, target)
    assert again["already"] == whole
    check_whole(target)


def test_a_killed_restore_of_several_places_begins_anew(home, target, tmp_path):
    folder = small_home.taken(home)
    script = (
        "import os,signal,sys; from pathlib import Path as P; from jobs import restore; from jobs.environment import Environment as E\nreal=os.rename;n=[]\n"
    )
    script += "def dies(a,b):\n n.append(1)\n if len(n)==2: os.kill(os.getpid(), signal.SIGKILL)\n return real(a,b)\nos.rename=dies\n"
    script += "restore.restore(E.load(sys.argv[1], sys.argv[2]), P(sys.argv[3]))"
    command = [sys.executable, "-c", script, str(tmp_path / "cluster.toml"), str(target.home), str(folder)]
    assert subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=False).returncode == -signal.SIGKILL
    assert target.home.exists() and not target.artifacts.exists()
    restore.restore(target, folder)
    check_whole(target)


def test_two_at_once_are_one_home(home, target, tmp_path):
    command = [sys.executable, "-m", "jobs.cli", "migrate", "--to", str(tmp_path / "cluster.toml"), "--from", str(home.home), "--home", str(target.home)]
    running = [subprocess.Popen(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    check_whole(target)


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_command(home, target, tmp_path, capsys):
    named = ["migrate", "--to", str(tmp_path / "cluster.toml"), "--from", str(home.home)]
    assert cli.main(named) == 1
    assert "Name it: --home NEW" in capsys.readouterr().err
    began = time.monotonic()
    assert cli.main([*named, "--home", str(target.home)]) == 0
    told = capsys.readouterr()
    assert "every sha256 is as it was" in told.out and "the rows of all their 6 versions were counted on both sides" in told.out
    assert f"Go on with: MOELINE_ENV={tmp_path / 'cluster.toml'} MOELINE_HOME={target.home} moeline up" in told.out
    assert "comparing every file" in told.err and time.monotonic() - began < 60
    assert cli.main([*named, "--home", str(target.home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already"]
    assert cli.main([*named, "--home", "/proc/nothing"]) == 1
    assert capsys.readouterr().err.startswith("moeline migrate: ")
