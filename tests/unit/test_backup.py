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
from small_home import DAYS, publish, rows_by_day

from jobs import backup, cli, restore
from jobs.contract import MoelineError, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import backup_folder, delta, results, table_files

NEWEST = {DAYS[0]: 5, DAYS[1]: 2}


@pytest.fixture
def home(tmp_path) -> Environment:
    return small_home.make(tmp_path / "home")


def taken(env: Environment, **options) -> Path:
    return Path(backup.backup(env, env.home.parent / "backups", **options)["folder"])


def put_back(folder: Path, name: str = "new") -> Environment:
    env = Environment.load("local", folder.parent.parent / "elsewhere" / name)
    restore.restore(env, folder)
    return env


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
    from jobs.tools import locked

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


# -- backups that are not as they were written ------------------------------------------------------------------------------


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _flip(folder: Path) -> None:
    file = next(file for name, file in backup_folder.regular_files(folder) if name.endswith(".parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _link(folder: Path) -> None:
    file = folder / "home" / "mlflow" / "password"
    file.unlink()
    file.symlink_to("/etc/hostname")


def _folder_link(folder: Path) -> None:
    shutil.move(folder / "landing", folder.parent.parent / "landing-elsewhere")
    (folder / "landing").symlink_to(folder.parent.parent / "landing-elsewhere")


def _renamed(name: str):
    def change(folder: Path) -> None:
        edit(folder, lambda manifest: manifest["files"].update({name: manifest["files"].pop("home/mlflow/password")}))

    return change


def _size(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["files"]["home/mlflow/password"].update(size="12"))


def _placed(name: str):
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "home" / "mlflow" / "password", folder / name)
        edit(folder, lambda manifest: manifest["files"].update({name: manifest["files"]["home/mlflow/password"]}))

    return change


BROKEN = {
    "a changed byte": (_flip, r"parquet': its content is not what was written \(sha256\)"),
    "a missing file": (lambda folder: (folder / "home/mlflow/password").unlink(), "'home/mlflow/password' is missing"),
    "a file too many": (lambda folder: (folder / "home/mlflow/more").write_text(""), "'home/mlflow/more' is not in the manifest"),
    "a cut file": (lambda folder: os.truncate(folder / "home/mlflow/password", 3), "has 3 bytes, 25 were written"),
    "a link": (_link, "is a link or no file"),
    "a link to a folder": (_folder_link, "is a link or no file"),
    "a fifo": (lambda folder: os.mkfifo(folder / "home" / "fifo"), "is a link or no file"),
    "a name that leaves the folder": (_renamed("home/../../../outside"), "no name that a backup gives"),
    "an absolute name": (_renamed("/outside"), "no name that a backup gives"),
    "a name at the top": (_renamed("outside"), "no name that a backup gives"),
    "our platform's record": (_placed("home/platform.json"), "not a file of a home that is backed up"),
    "a configuration of Airflow": (_placed("home/airflow/airflow.cfg"), "not a file of a home that is backed up"),
    "another database": (_placed("databases/other.dump"), "no database of the platform"),
    "a size in words": (_size, "no size and sha256"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no whole backup"),
    "a manifest of nothing": (lambda folder: (folder / "manifest.json").write_text("[]"), "is no manifest of a backup"),
    "another format": (lambda folder: edit(folder, lambda manifest: manifest.update(format=2)), "of format 2"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return taken(small_home.make(tmp_path_factory.mktemp("whole") / "home"))


def copy_of(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "backups" / whole.name, symlinks=True))


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_as_written_is_refused(whole, tmp_path, name):
    folder, (change, said) = copy_of(whole, tmp_path), BROKEN[name]
    change(folder)
    with pytest.raises(MoelineError, match=said):
        backup.verify(folder)
    with pytest.raises(MoelineError, match=said):
        put_back(folder)
    assert [*(tmp_path / "elsewhere").glob("*")] == [] and not (tmp_path / "outside").exists()


def rewritten(folder: Path, name: str, data: bytes) -> None:
    """A file and its entry: a backup whose author wanted it so."""
    import hashlib

    (folder / name).write_bytes(data)
    edit(folder, lambda m: m["files"][name].update(size=len(data), sha256=hashlib.sha256(data).hexdigest()))


def _log_that_names(path: str):
    def change(folder: Path) -> None:
        name = f"warehouse/fingerprints/{table_files.LOG}/{3:020}.json"
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        next(line for line in lines if "add" in line)["add"]["path"] = path
        rewritten(folder, name, "\n".join(map(json.dumps, lines)).encode())

    return change


HOSTILE = {
    "a table that reads another folder": (_log_that_names("../../../../etc/hostname"), "is no plain file of its own"),
    "a table that reads it in code": (_log_that_names("..%2F..%2Fkeys/x"), "is no plain file of its own"),
    "a table that reads a URL": (_log_that_names("file:///etc/hostname"), "is no plain file of its own"),
    "a table with other rows": (lambda f: edit(f, lambda m: m["tables"]["fingerprints"].update(rows=8)), "version 3 with 7 rows came back, version 3 with 8"),
    "a table at another version": (lambda f: edit(f, lambda m: m["tables"]["fingerprints"].update(version=2)), "version 3 with 7 rows came back, version 2"),
    "a table nobody counted": (lambda f: edit(f, lambda m: m["tables"].pop("checks")), "table 'checks' has a log in the backup"),
    "no tables": (lambda f: edit(f, lambda m: m.pop("tables")), "does not say when it was made"),
    "words for a terminal": (lambda f: edit(f, lambda m: m.update(landing="\x1b[2J")), "does not say when it was made"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_backup_that_was_written_to_harm_is_refused(whole, tmp_path, name):
    folder, (change, said) = copy_of(whole, tmp_path), HOSTILE[name]
    change(folder)
    with pytest.raises(MoelineError, match=said):
        put_back(folder)
    assert [*(tmp_path / "elsewhere").glob("*")] == []


@pytest.mark.parametrize("place", ["home", "warehouse", "file"])
def test_nothing_that_is_there_is_overwritten(whole, tmp_path, place):
    folder = copy_of(whole, tmp_path)
    there = {"home": "new/notes.txt", "warehouse": "new/warehouse/x", "file": "new"}[place]
    file = small_home.write(tmp_path / "elsewhere" / there, "mine")
    with pytest.raises(MoelineError, match=r"is not empty. Nothing was changed."):
        put_back(folder)
    assert file.read_text() == "mine" and not [*(tmp_path / "elsewhere").glob(".*")]


def test_an_empty_home_is_filled(whole, tmp_path):
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    assert rows_by_day(put_back(copy_of(whole, tmp_path)), TableVersion("fingerprints", 3)) == NEWEST


def test_places_outside_the_home(whole, tmp_path):
    text = (REPO / "infra/env/local.toml").read_text()
    for name in ("warehouse", "landing"):
        text = text.replace(f'{name} = "{name}"', f'{name} = "{tmp_path}/disk/{name}"')
    (tmp_path / "own.toml").write_text(text)
    env = Environment.load(str(tmp_path / "own.toml"), tmp_path / "elsewhere" / "new")
    restore.restore(env, copy_of(whole, tmp_path))
    assert rows_by_day(env, TableVersion("fingerprints", 3)) == NEWEST
    assert env.warehouse == tmp_path / "disk" / "warehouse" and (env.landing / "prose" / DAYS[0] / "a.jsonl").is_file()
    assert sorted(entry.name for entry in (tmp_path / "disk").iterdir()) == ["landing", "warehouse"]


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
    with pytest.raises(MoelineError, match="Another `moeline restore` is at work"):
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
