"""`moeline gauntlet fetch`: a real server on loopback, whole files or none, and nothing that is not the recorded file."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from gauntlet_examples import GAUNTLET, needs_gauntlet

from jobs import cli, gauntlet_data
from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import foundry_files
from jobs.services.foundry_files import DataFile, FileList, read_list

CONTENT = {f"local_data/words/{name}.jsonl": f'{{"context": "{name}"}}\n'.encode() * 40_000 for name in ("one", "two", "three", "four")}
CONTENT["yamls/tasks_v0.3.yaml"] = b"icl_tasks: []\n"


def data_file(path: str, content: bytes) -> DataFile:
    return DataFile(path, Path(path).stem if path.endswith("jsonl") else "", hashlib.sha256(content).hexdigest(), len(content), None)


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``answers``: path -> (status, body, length it claims). ``asked``: paths, in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, bytes, int | None]] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.removeprefix("/data/")
        self.server.asked.append(path)
        status, body, length = self.server.answers.get(path) or ((200, CONTENT[path], None) if path in CONTENT else (404, b"no", None))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body.decode())
            body = b""
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def env(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return Environment.load("local", tmp_path / "home")


def listed(server, *, source: str | None = None) -> FileList:
    files = tuple(data_file(path, content) for path, content in CONTENT.items())
    return FileList("owner/name", "v1", source or f"http://127.0.0.1:{server.server_port}/data/{{path}}", files)


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_every_file_is_fetched_once_and_the_progress_ends_at_all(server, env):
    lines: list[str] = []
    found = gauntlet_data.fetch(env, files=listed(server), echo=lines.append)
    assert contents(env.home / "gauntlet") == CONTENT and (found["fetched"], found["files"]) == (5, 5)
    assert found["tasks"] == ["four", "one", "three", "two"] and found["bytes"] == sum(map(len, CONTENT.values()))
    assert lines[-1].startswith("[gauntlet] 5 of 5 files, 3.2 of 3.2 MB") and "0 s left" in lines[-1]
    assert gauntlet_data.fetch(env, files=listed(server))["fetched"] == 0 and len(server.asked) == 5
    assert list(env.home.iterdir()) == [env.home / "gauntlet"]  # nothing unfinished is left


def test_a_fetch_that_was_killed_goes_on_where_it_was(server, env, monkeypatch):
    class Killed(BaseException):
        pass

    whole = foundry_files._write

    def dies(wanted, *rest):
        if wanted.path.endswith("three.jsonl"):
            raise Killed
        whole(wanted, *rest)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(foundry_files, "_write", dies)
        gauntlet_data.fetch(env, files=listed(server))
    (env.home / ".gauntlet.unfinished" / "half").write_bytes(b"left by a kill")
    before = set(contents(env.home / "gauntlet"))
    assert before == {"local_data/words/one.jsonl", "local_data/words/two.jsonl"}
    server.asked.clear()
    assert gauntlet_data.fetch(env, files=listed(server))["fetched"] == 3
    assert set(server.asked) == set(CONTENT) - before and contents(env.home / "gauntlet") == CONTENT
    assert not (env.home / ".gauntlet.unfinished").exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, CONTENT["local_data/words/two.jsonl"].replace(b"two", b"2wo"), None), "two.jsonl: expected sha256 {sha256}, found {found}"),
        ((200, b"<html>log in</html>", None), "two.jsonl: expected 760000 bytes with sha256 {sha256}, found 19 bytes"),
        ((200, CONTENT["local_data/words/two.jsonl"] + b"x", None), "two.jsonl: expected at most 760000 bytes, found more"),
        ((200, CONTENT["local_data/words/two.jsonl"][:500], 760_000), "peer closed connection"),
        ((404, b"", None), "two.jsonl answered HTTP 404"),
        ((403, b"", None), "two.jsonl answered HTTP 403"),
        ((503, b"", None), "two.jsonl answered HTTP 503"),
        ((302, b"ftp://127.0.0.1/x", None), "cannot be fetched"),
        ((302, b"/data/local_data/words/two.jsonl", None), "cannot be fetched"),
    ],
    ids=["other content", "error page", "too long", "cut", "404", "403", "503", "another protocol", "in circles"],
)
def test_what_is_not_the_recorded_file_is_named_and_not_published(server, env, answer, says):
    path = "local_data/words/two.jsonl"
    server.answers[path] = answer
    wanted = {"sha256": hashlib.sha256(CONTENT[path]).hexdigest(), "found": hashlib.sha256(answer[1]).hexdigest()}
    with pytest.raises(MoelineError) as caught:
        gauntlet_data.fetch(env, files=listed(server), wait_seconds=0)
    assert says.format(**wanted) in str(caught.value)
    assert set(contents(env.home / "gauntlet")) == {"local_data/words/one.jsonl"}
    server.answers.clear()
    gauntlet_data.fetch(env, files=listed(server))
    assert contents(env.home / "gauntlet") == CONTENT


def test_a_server_that_stumbles_is_asked_again(server, env, monkeypatch):
    path = "local_data/words/two.jsonl"
    server.answers[path] = (503, b"", None)
    # Not time.sleep itself: threads that other tests left behind call that too.
    monkeypatch.setattr(foundry_files, "time", SimpleNamespace(sleep=lambda _: server.answers.clear(), monotonic=time.monotonic))
    assert gauntlet_data.fetch(env, files=listed(server))["fetched"] == 5
    assert server.asked.count(path) == 2


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_offline_one_screen_says_what_to_copy_where(server, env, tmp_path):
    gauntlet_data.fetch(env, files=listed(server), tasks=["one"])
    address = f"http://127.0.0.1:{closed_port()}/scripts/eval/{{path}}"
    with pytest.raises(MoelineError) as caught:
        gauntlet_data.fetch(env, files=listed(server, source=address), wait_seconds=0)
    said = str(caught.value)
    assert len(said.splitlines()) < 24 and "2 of 5 files are in" in said
    assert all((path in said) == (path not in ("local_data/words/one.jsonl", "yamls/tasks_v0.3.yaml")) for path in CONTENT)
    for part in (address, f"into {env.home / 'gauntlet'}", "moeline gauntlet fetch --from FOLDER", "--branch v1 https://github.com/owner/name"):
        assert part in said
    copy = tmp_path / "stick" / "scripts" / "eval"  # a checkout of Foundry, carried over by hand
    for path, content in CONTENT.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes(content)
    (copy / "local_data/words/four.jsonl").unlink()
    with pytest.raises(MoelineError, match=r"has no local_data/words/four\.jsonl\. .* 4 of 5 files are in"):
        gauntlet_data.fetch(env, files=listed(server), source=str(tmp_path / "stick"))
    (copy / "local_data/words/four.jsonl").write_bytes(b"{}\n" * 10)
    with pytest.raises(MoelineError, match=r"four\.jsonl: expected \d+ bytes .* found 30 bytes"):
        gauntlet_data.fetch(env, files=listed(server), source=str(copy))
    (copy / "local_data/words/four.jsonl").write_bytes(CONTENT["local_data/words/four.jsonl"])
    gauntlet_data.fetch(env, files=listed(server), source=str(copy))
    assert contents(env.home / "gauntlet") == CONTENT


@pytest.mark.parametrize(
    "path",
    ["../secret.jsonl", "local_data/../../x", "/etc/passwd", "local_data//x", "local_data/.hidden", "local_data", "other/x.jsonl", "local_data/a\\..\\b",
     "local_data/a\nb", "local_data/x?y", "local_data/%2e%2e/x", "yamls/x/", ""],
)  # fmt: skip
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path, path):
    written = "\n".join(['repository = "o/n"', 'revision = "v1"', 'source = "https://h/{path}"', "[[files]]", f"path = {json.dumps(path)}", "rows = 3"])
    (tmp_path / "list.toml").write_text(written)
    with pytest.raises(MoelineError, match="is no name of a data file"):
        read_list(tmp_path / "list.toml")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('sha256 = "ABC"\nbytes = 3', "not 64 hexadecimal digits"),
        ("bytes = 3", "needs sha256 and bytes"),
        ("rows = -1", "whole numbers above 0"),
        ("", "or else the number of its rows"),
        ('rows = 3\n[[files]]\npath = "local_data/A.jsonl"\nrows = 3', "twice: local_data/a.jsonl"),
    ],
)
def test_a_list_that_pins_nothing_is_refused(tmp_path, entry, says):
    (tmp_path / "list.toml").write_text(f'repository = "o/n"\nrevision = "v1"\nsource = "s"\n[[files]]\npath = "local_data/a.jsonl"\n{entry}\n')
    with pytest.raises(MoelineError, match=says):
        read_list(tmp_path / "list.toml")


@pytest.mark.parametrize("source", ["file:///etc/{path}", "ftp://host/{path}", "https://name:word@host/{path}", "nowhere", "https:///x"])
def test_a_source_that_is_no_folder_and_no_plain_address_is_refused(server, env, source):
    with pytest.raises(MoelineError, match="neither a folder that is there nor"):
        gauntlet_data.fetch(env, files=listed(server), source=source)
    assert not (env.home / "gauntlet").exists()


def test_the_data_never_lies_in_the_repository(server, env):
    with pytest.raises(MoelineError, match="inside the repository"):
        gauntlet_data.fetch(env, files=listed(server), to=REPO / "models" / "data")


def test_two_fetches_do_not_write_the_same_folder(server, env):
    with gauntlet_data._held(env.home / "gauntlet"), pytest.raises(MoelineError, match=r"Another .* is writing"):
        gauntlet_data.fetch(env, files=listed(server))


def test_a_file_nobody_has_hashed_is_fetched_on_request_counted_and_then_held_to_its_sha256(server, env):
    files = listed(server)
    loose = replace(files.files[0], sha256=None, n_bytes=None, rows=40_000)
    files = replace(files, files=(loose, *files.files[1:]))
    found = gauntlet_data.fetch(env, files=files)
    assert (found["fetched"], found["missing_tasks"], found["unpinned"]) == (4, ["one"], {})
    assert "Not there: one." in gauntlet_data.render(found) and "--tasks v0.3-local" in gauntlet_data.render(found)
    server.answers[loose.path] = (200, CONTENT[loose.path] + b"{}\n", None)
    with pytest.raises(MoelineError, match="expected 40000 lines of JSON, found 40001"):
        gauntlet_data.fetch(env, files=files, unpinned=True)
    server.answers[loose.path] = (200, b"<p>\n" * 40_000, None)
    with pytest.raises(MoelineError, match="expected 40000 lines of JSON, found something else"):
        gauntlet_data.fetch(env, files=files, unpinned=True)
    server.answers.clear()
    found = gauntlet_data.fetch(env, files=files, unpinned=True)
    assert found["unpinned"] == {loose.path: hashlib.sha256(CONTENT[loose.path]).hexdigest()}
    (env.home / "gauntlet" / loose.path).write_bytes(b'{"context": "another"}\n' * 40_000)
    with pytest.raises(MoelineError, match=rf"one\.jsonl: expected sha256 {found['unpinned'][loose.path]}"):
        gauntlet_data.check(env, files=files)


def test_check_names_what_is_wrong_and_what_is_missing(server, env):
    gauntlet_data.fetch(env, files=listed(server))
    assert gauntlet_data.check(env, files=listed(server))["files"] == 5
    folder = env.home / "gauntlet" / "local_data" / "words"
    (folder / "one.jsonl").write_bytes(CONTENT["local_data/words/one.jsonl"].replace(b"one", b"0ne", 1))
    (folder / "two.jsonl").unlink()
    with pytest.raises(MoelineError, match=r"one\.jsonl: expected sha256 .*; local_data/words/two\.jsonl: missing"):
        gauntlet_data.check(env, files=listed(server))
    with pytest.raises(MoelineError, match=r"holds other files than the recorded ones\. local_data/words/one\.jsonl"):
        gauntlet_data.fetch(env, files=listed(server))
    with pytest.raises(MoelineError, match=r"No data file of a task zero is recorded\. There are four, one, three, two"):
        gauntlet_data.check(env, files=listed(server), tasks=["zero"])


@needs_gauntlet
def test_the_recorded_list_is_foundrys_data_and_its_tasks_are_read(tmp_path, capsys):
    from models.gauntlet import tasks

    home = ["--home", str(tmp_path / "home")]
    assert cli.main(["gauntlet", "fetch", "--from", str(GAUNTLET), "--json", *home]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == 33 and found["missing_tasks"] == ["bigbench_elementary_math_qa", "coqa", "hellaswag", "mmlu", "squad"]
    assert cli.main(["gauntlet", "check", *home]) == 0
    assert f"--data {tmp_path / 'home' / 'gauntlet'}" in capsys.readouterr().out
    loaded = tasks.gauntlet_data(found["folder"])
    assert {b.task.label for b in loaded} == set(tasks.V03_LOCAL)
    recorded = {one.task: one.rows for one in read_list().files}
    assert {b.task.label: len(b.items) for b in loaded} == {label: recorded[label] for label in tasks.V03_LOCAL}
    assert sum(recorded[label] for label in (*tasks.V03_LOCAL, *found["missing_tasks"]) if label != "bigbench_cs_algorithms") == 133_865
