"""A home is copied and comes back elsewhere: tables at every version, results, keys; whatever else happens to them meanwhile, and wherever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import small_home
from small_home import DAYS, NEWEST, publish, put_back, rows_by_day, taken

from jobs import backup, cli
from jobs.contract import MoelineError, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import backup_folder, delta, results, table_files


@pytest.fixture
def home(tmp_path) -> Environment:
    return small_home.make(tmp_path / "home")


def test_a_home_comes_back_under_another_path(home):
    folder = taken(home)
    home.home.rename(home.home.with_name("gone"))  # whatever names the old place by its path fails from here on
    env = put_back(folder)
    assert rows_by_day(env, TableVersion("fingerprints", 3)) == NEWEST
    assert rows_by_day(env, TableVersion("fingerprints", 2)) == {DAYS[0]: 3, DAYS[1]: 2}, "older versions too"
    assert [r["rule"] for r in delta.rows(env, "checks")] == ["r"]
    assert [r.interval for r in results.of_stage(env, "deduplicate")] == list(DAYS)
    assert results.writer_of(env, TableVersion("fingerprints", 2)).interval == DAYS[1]
    assert (env.home / "attempts" / "a1.json").stat().st_mtime == 1_700_000_000, "an attempt's last sign of life"
    published = publish(env, "2026-01-03", 7)
    assert rows_by_day(env, published) == {**NEWEST, "2026-01-03": 7}, "the table goes on"


def test_secrets_come_along_for_the_owner_alone(home):
    folder = taken(home)
    env = put_back(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == stat.S_IMODE(env.home.stat().st_mode) == 0o700
    for root in (folder, env.home):
        assert {stat.S_IMODE(file.stat().st_mode) for _, file in backup_folder.regular_files(root)} == {0o600}
    for name in ("keys/model-signing.pem", "airflow/passwords.json", "airflow/keys/fernet", "mlflow/password"):
        assert (env.home / name).read_text() == f"secret of {name}"


def test_what_can_be_made_again_is_not_copied(home):
    env = put_back(taken(home))
    names = {name for name, _ in backup_folder.regular_files(env.home)}
    assert not [name for name in names if name.startswith(("logs", "platform.json", "locks", "progress", "spark", "evaluations", "warehouse/_staging", "."))]
    assert not [name for name in names if "writer.lock" in name or ".unfinished" in name or ".b.jsonl" in name or "link" in name]
    assert "landing/prose/2026-01-01/a.jsonl" in names and "recipes/mine.json" in names


def test_work_by_hand_names_the_artifacts_of_the_new_home(home):
    env = put_back(taken(home))
    with small_home.by_hand(env) as database:
        found = [place for (place,) in database.execute("SELECT artifact_location FROM experiments")]
    assert found == [f"{env.artifacts.as_uri()}/mlflow", "mlflow-artifacts:/1", f"{home.artifacts.as_uri()}-of-another/mlflow"]


def test_without_the_landing_zone(home):
    found = backup.backup(home, home.home.parent / "backups", landing=False)
    assert found["landing"] == "not copied: --no-landing"
    assert not put_back(Path(found["folder"])).landing.exists()


def test_earlier_backups_stay_and_other_things_are_refused(home):
    first, second = taken(home), taken(home)
    assert first != second and rows_by_day(put_back(first), TableVersion("fingerprints", 3)) == NEWEST
    (first.parent / "notes.txt").write_text("mine")
    with pytest.raises(MoelineError, match=r"holds other things than backups \(notes.txt\)"):
        taken(home)
    with pytest.raises(MoelineError, match="inside"):
        backup.backup(home, home.warehouse / "backups")
    with pytest.raises(MoelineError, match=f"name one of them: {first.name}, {second.name}"):
        backup.verify(first.parent)


# -- while others write -----------------------------------------------------------------------------------------------------


def before_copy(monkeypatch, name_starts: str, act) -> None:
    """Let ``act`` happen once, before the first file whose name starts so is copied."""
    real, left = backup_folder.Unfinished.copy, [act]

    def copy(self, name, source):
        if left and name.startswith(name_starts):
            left.pop()()
        return real(self, name, source)

    monkeypatch.setattr(backup_folder.Unfinished, "copy", copy)


def test_a_commit_during_the_copy_is_of_the_next_backup(home, monkeypatch):
    before_copy(monkeypatch, "warehouse/fingerprints/interval", lambda: publish(home, DAYS[1], 9))
    env = put_back(taken(home))
    assert delta.latest(env, "fingerprints") == TableVersion("fingerprints", 3)
    assert rows_by_day(env, TableVersion("fingerprints", 3)) == NEWEST
    assert rows_by_day(home, TableVersion("fingerprints", 4)) == {**NEWEST, DAYS[1]: 9}


def test_where_a_file_vanishes_the_newer_version_is_taken(home, monkeypatch):
    def commit_and_vacuum():
        old = delta.open_table(home, "fingerprints").file_uris()
        publish(home, DAYS[0], 1)
        publish(home, DAYS[1], 4)
        for file in old:
            Path(file).unlink()

    before_copy(monkeypatch, "warehouse/fingerprints/interval", commit_and_vacuum)
    found = backup.backup(home, home.home.parent / "backups")
    assert found["tables"]["fingerprints"] == {"version": 5, "rows": 5, "removed": 2}
    env = put_back(Path(found["folder"]))
    assert rows_by_day(env, TableVersion("fingerprints", 5)) == {DAYS[0]: 1, DAYS[1]: 4}
    with pytest.raises(MoelineError, match="can no longer be read"):  # as in the home itself
        rows_by_day(env, TableVersion("fingerprints", 3))


def test_a_table_without_one_of_its_files_is_not_called_whole(home):
    file = Path(delta.open_table(home, "fingerprints").file_uris()[0])
    file.unlink()
    with pytest.raises(MoelineError, match=r"fingerprints@3 reads interval=.*parquet, which is not in"):
        taken(home)
    assert list((home.home.parent / "backups").iterdir()) == []


def test_commits_without_pause(home):
    stop, last = threading.Event(), []

    def commit():
        while not stop.is_set():
            last.append(publish(home, DAYS[len(last) % 2], len(last) + 1))

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        folders = [taken(home) for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    for folder in folders:
        env = put_back(folder, folder.name)
        version = delta.latest(env, "fingerprints")
        assert rows_by_day(env, version) == rows_by_day(home, version)
    assert len(last) > 3


def test_a_checkpoint_that_is_removed_meanwhile_is_not_half_there(home, monkeypatch):
    def next_checkpoint():
        small_home.checkpoint(home, 20)
        shutil.rmtree(home.artifacts / "checkpoints" / "k1" / "step-0000000010")

    before_copy(monkeypatch, "artifacts/checkpoints/k1/step-0000000010/state", next_checkpoint)
    folder = taken(home) / "artifacts" / "checkpoints" / "k1"
    assert sorted(file.parent.name + "/" + file.name for _, file in backup_folder.regular_files(folder)) == [
        "step-0000000020/model.safetensors", "step-0000000020/state.json",
    ]  # fmt: skip


def test_forgetting_and_copying_take_turns(home):
    from jobs.services.locks import locked

    said: list[str] = []
    with locked(home, "forget"):
        thread = threading.Thread(target=lambda: taken(home, echo=said.append))
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and said[-1] == "Waiting for `moeline forget` or another backup to end."
    thread.join(30)
    assert not thread.is_alive()


def test_a_log_that_starts_from_a_checkpoint(home):
    table = delta.open_table(home, "fingerprints")
    table.create_checkpoint()
    log = home.warehouse / "fingerprints" / table_files.LOG
    for version in range(3):
        (log / f"{version:020}.json").unlink()
    publish(home, DAYS[1], 8)
    env = put_back(taken(home))
    assert rows_by_day(env, TableVersion("fingerprints", 4)) == {DAYS[0]: 5, DAYS[1]: 8}
    (log / f"{3:020}.checkpoint.parquet").unlink()
    with pytest.raises(MoelineError, match="starts at version 3 without a checkpoint"):
        taken(home)


# -- killed -----------------------------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
from jobs import backup, restore
from jobs.environment import Environment
from jobs.services import backup_folder
what, moment, home, folder = sys.argv[1:]
def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
class Dying:
    calls, real = 0, staticmethod(backup_folder.copied)
    def __call__(self, source, target, seen):
        Dying.calls += 1
        return dies() if Dying.calls == int(moment) else Dying.real(source, target, seen)
if moment.isdigit():
    backup_folder.copied = restore.copied = Dying()
elif moment == "sync":
    os.sync = dies
else:
    os.rename = dies
env = Environment.load("local", home)
backup.backup(env, Path(folder)) if what == "backup" else restore.restore(env, Path(folder))
"""


def killed(what: str, moment: str, home: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL, what, moment, str(home), str(folder)], cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=False
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["1", "12", "sync", "rename"])
def test_a_killed_backup_does_not_look_whole(home, moment):
    backups = home.home.parent / "backups"
    killed("backup", moment, home.home, backups)
    (left,) = backups.iterdir()
    assert left.name.startswith(".unfinished-")
    assert (left / "manifest.json").exists() == (moment == "rename"), "the manifest comes last"
    with pytest.raises(MoelineError, match=r"no whole backup: it has no manifest\.json"):
        backup.verify(backups)
    whole = taken(home)
    assert [entry.name for entry in backups.iterdir()] == [whole.name], "what was left is removed by the next one"
    assert rows_by_day(put_back(whole), TableVersion("fingerprints", 3)) == NEWEST


@pytest.mark.parametrize("moment", ["1", "12", "rename"])
def test_a_killed_restore_leaves_no_home(home, moment):
    folder = taken(home)
    new = folder.parent.parent / "elsewhere" / "new"
    killed("restore", moment, new, folder)
    assert not new.exists()
    assert rows_by_day(put_back(folder), TableVersion("fingerprints", 3)) == NEWEST
    assert [entry.name for entry in new.parent.iterdir()] == ["new"]


# -- the commands -----------------------------------------------------------------------------------------------------------


def test_the_commands(home, capsys):
    backups, new = home.home.parent / "backups", home.home.parent / "new"
    assert cli.main(["backup", str(backups), "--home", str(home.home), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["tables"]["fingerprints"] == {"version": 3, "rows": 7, "removed": 0} and made["databases"] == []
    assert cli.main(["backup", "--verify", made["folder"]]) == 0
    told = capsys.readouterr().out
    assert "as it was written" in told and made["manifest_sha256"] in told and "keeps what is forgotten later" in told
    assert cli.main(["restore", made["folder"], "--home", str(new)]) == 0
    told = capsys.readouterr().out
    assert "every sha256 and row count is as it was" in told and "Nothing is forgotten again by itself." in told
    assert cli.main(["restore", made["folder"], "--home", str(new)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["backup", "/proc/nothing", "--home", str(home.home)]) == 1
    assert "No backup was made" in capsys.readouterr().err


def test_two_at_once_are_two_backups_and_one_home(home):
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(taken(home))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 2
    other = backup_folder.Unfinished(folders[0].parent, backup_folder.Progress(1, lambda _: None))  # one that is being written stays
    third = taken(home)
    assert other.folder.is_dir() and third not in folders
    new = home.home.parent / "elsewhere" / ".new.restoring"
    new.mkdir(parents=True)
    held = backup_folder.lock(new)
    with pytest.raises(MoelineError, match="Another `moeline restore` or `moeline migrate` is at work"):
        put_back(third)
    os.close(held)
    assert rows_by_day(put_back(third), TableVersion("fingerprints", 3)) == NEWEST


def test_progress_tells_how_long_it_will_take(monkeypatch):
    said, clock = [], iter([0.0, 1.0, 5.0])
    monkeypatch.setattr(backup_folder.time, "monotonic", lambda: next(clock))
    progress = backup_folder.Progress(2_000_000, said.append)
    progress.add(500_000, "a")
    progress.add(500_000, "warehouse/b")
    assert said == ["   50%  1 MB of about 2 MB, ETA 5 s  warehouse/b"]
