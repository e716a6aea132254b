"""Backups that are not as they were written, by damage or with intent: refused before anything is made of them. And places that are not empty."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import small_home
from small_home import DAYS, NEWEST, put_back, rows_by_day, taken

from jobs import backup, restore
from jobs.contract import MoelineError, TableVersion
from jobs.environment import REPO, Environment
from jobs.services import backup_folder, table_files


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
