"""``moeline gauntlet fetch`` and ``check``: every file is the recorded one or is refused, whatever the server, the disk or a kill does."""

from __future__ import annotations

import hashlib
import http.server
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from gauntlet_examples import GAUNTLET, needs_gauntlet

from jobs import cli, gauntlet_data
from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import foundry_files
from jobs.services.foundry_files import DataFile, FileList

ROWS = b'{"context": "a", "answer": "b"}\n' * 5
FILES = {"yamls/tasks_v0.3.yaml": b"icl_tasks: []\n", "local_data/symbolic/svamp.jsonl": ROWS, "local_data/world/mmlu.jsonl": ROWS * 2}
SVAMP, MMLU = "local_data/symbolic/svamp.jsonl", "local_data/world/mmlu.jsonl"


def recorded(path: str, task: str = "", pinned: bool = True) -> DataFile:
    content = FILES[path]
    if pinned:
        return DataFile(path, task, hashlib.sha256(content).hexdigest(), len(content), None)
    return DataFile(path, task, None, None, content.count(b"\n"))


@contextmanager
def server(answers, broken=None):
    """A real HTTP server of ``answers``; ``broken(path, count)`` may give (status, body, content length) instead. Yields (address, requests)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.lstrip("/")
            asked.append(path)
            status, body = (200, answers[path]) if path in answers else (404, b"not here")
            length = len(body)
            if broken is not None and (given := broken(path, asked.count(path))) is not None:
                status, body, length = given
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def listed(*files: DataFile) -> FileList:
    return FileList("owner/name", "v1", "http://127.0.0.1:9/{path}", files or (recorded("yamls/tasks_v0.3.yaml"), recorded(SVAMP, "svamp")))


def fetch(env, address, files=None, **more):
    return gauntlet_data.fetch(env, source=address, files=files or listed(), wait_seconds=0.0, **more)


def left_over(env) -> list[str]:
    return [str(f) for f in env.home.glob(".gauntlet.unfinished*")]


def test_everything_arrives_verified_once_and_is_not_fetched_again(env):
    with server(FILES) as (address, asked):
        said: list[str] = []
        found = fetch(env, f"{address}/{{path}}", echo=said.append)
        assert found["fetched"] == found["files"] == 2 and found["tasks"] == ["svamp"] and found["missing_tasks"] == []
        assert (env.home / "gauntlet" / SVAMP).read_bytes() == ROWS and "2 of 2 files" in said[-1]
        assert fetch(env, address)["fetched"] == 0 and len(asked) == 2
    assert gauntlet_data.check(env, files=listed())["files"] == 2 and left_over(env) == []


def test_a_fetch_that_was_killed_goes_on_with_what_is_missing(env):
    with server(FILES, lambda path, count: (403, b"", 0) if path == SVAMP and count == 1 else None) as (address, asked):
        with pytest.raises(MoelineError, match="HTTP 403"):
            fetch(env, address)
        unfinished = env.home / ".gauntlet.unfinished"
        unfinished.mkdir(exist_ok=True)
        (unfinished / "half").write_bytes(ROWS[:7])  # as a kill while writing leaves it
        assert fetch(env, address)["fetched"] == 1
        assert asked == ["yamls/tasks_v0.3.yaml", SVAMP, SVAMP]
    assert left_over(env) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, ROWS.replace(b"b", b"c", 1), len(ROWS)), f"{SVAMP}: expected sha256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}"),
        ((200, ROWS[:-3], len(ROWS) - 3), "found 157 bytes"),
        ((200, ROWS * 3, len(ROWS) * 3), "expected at most 160 bytes, found more"), ((404, b"", 0), "HTTP 404: it has no such file"),
        ((403, b"", 0), "HTTP 403"),
    ],
    ids=["other content", "shorter", "longer", "not there", "refused"],
)  # fmt: skip
def test_what_is_not_the_recorded_file_is_refused_and_nothing_of_it_stays(answer, message, env):
    with server(FILES, lambda path, _: answer if path == SVAMP else None) as (address, _), pytest.raises(MoelineError, match=message):
        fetch(env, address)
    assert (not (env.home / "gauntlet" / SVAMP).exists() and left_over(env) == []) or list((env.home / ".gauntlet.unfinished").iterdir()) == []
    assert (env.home / "gauntlet" / "yamls/tasks_v0.3.yaml").is_file(), "what was right before is kept"


@pytest.mark.parametrize("answer", [(503, b"", 0), (200, ROWS[:10], len(ROWS))], ids=["busy", "cut off"])
def test_a_server_that_is_busy_or_breaks_off_is_asked_again(answer, env):
    with server(FILES, lambda path, count: answer if path == SVAMP and count < 3 else None) as (address, asked):
        assert fetch(env, address)["fetched"] == 2
        assert asked.count(SVAMP) == 3


def test_without_a_network_it_says_what_to_copy_where(env):
    with pytest.raises(MoelineError) as refused:
        fetch(env, "http://127.0.0.1:9")
    text = str(refused.value)
    for part in (
        "could not be fetched",
        SVAMP,
        "160 bytes",
        str(env.home / "gauntlet"),
        "git clone --depth 1 --branch v1",
        "moeline gauntlet fetch --from FOLDER",
    ):
        assert part in text
    copy = env.home / "copy"
    for path, content in FILES.items():
        (copy / "scripts" / "eval" / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / "scripts" / "eval" / path).write_bytes(content)
    assert fetch(env, str(copy))["fetched"] == 2
    (copy / "scripts" / "eval" / SVAMP).unlink()
    (env.home / "gauntlet" / SVAMP).unlink()
    with pytest.raises(MoelineError, match=f"has no {SVAMP}"):
        fetch(env, str(copy))


def test_a_file_that_was_changed_is_named_and_not_silently_replaced(env):
    with server(FILES) as (address, _):
        fetch(env, address)
        (env.home / "gauntlet" / SVAMP).write_bytes(ROWS[:-1] + b" ")
        with pytest.raises(MoelineError, match=f"{SVAMP}: expected sha256.*Remove them"):
            fetch(env, address)
    with pytest.raises(MoelineError, match=f"is not Foundry's data of v1. {SVAMP}: expected sha256"):
        gauntlet_data.check(env, files=listed())


def test_a_file_nobody_has_hashed_comes_only_when_asked_for_and_stays_what_it_was(env):
    files = listed(recorded(SVAMP, "svamp"), recorded(MMLU, "mmlu", pinned=False))
    with server(FILES) as (address, _):
        assert fetch(env, address, files)["missing_tasks"] == ["mmlu"]
        found = fetch(env, address, files, unpinned=True)
        assert found["unpinned"] == {MMLU: hashlib.sha256(FILES[MMLU]).hexdigest()} and "Not pinned" in gauntlet_data.render(found)
        (env.home / "gauntlet" / MMLU).write_bytes(FILES[MMLU].replace(b"b", b"c", 1))  # as many rows as recorded
        with pytest.raises(MoelineError, match=f"{MMLU}: expected sha256"):
            fetch(env, address, files, unpinned=True)
    other = {**FILES, MMLU: ROWS}
    (env.home / "gauntlet" / MMLU).unlink()
    with server(other) as (address, _), pytest.raises(MoelineError, match="expected 10 lines of JSON, found 5"):
        fetch(env, address, files, unpinned=True)


def test_two_fetches_do_not_write_into_one_folder(env):
    with gauntlet_data._held(env.home / "gauntlet"), pytest.raises(MoelineError, match="Another `moeline gauntlet fetch`"):
        fetch(env, "http://127.0.0.1:9")


def test_the_data_never_goes_into_the_repository(env):
    with pytest.raises(MoelineError, match="inside the repository"):
        fetch(env, "http://127.0.0.1:9", to=REPO / "tests" / "data")


@pytest.mark.parametrize("address", ["ftp://host/x", "file:///etc", "http://user:word@host", "http://", "no such folder"])
def test_only_folders_and_plain_web_addresses_are_taken(address, env):
    with pytest.raises(MoelineError, match="neither a folder that is there nor an http"):
        fetch(env, address)


GOOD = f'path = "{SVAMP}"\nsha256 = "{"0" * 64}"\nbytes = 5\n'


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD.replace("svamp.jsonl", "../../x"), "no name of a data file"), (GOOD.replace(SVAMP, "/etc/passwd"), "no name of a data file"),
        (GOOD.replace(SVAMP, "local_data/a b"), "no name"), (GOOD.replace(SVAMP, "local_data/..%2f"), "no name"),
        (GOOD.replace("0" * 64, "0" * 63), "64 hexadecimal"), (GOOD.replace("bytes = 5", "bytes = 0"), "above 0"),
        (GOOD.replace("bytes = 5\n", ""), "needs sha256 and bytes"), (f"{GOOD}\n[[files]]\n{GOOD.replace('svamp', 'SVAMP')}", "twice"),
    ],
)  # fmt: skip
def test_a_hostile_list_is_refused(entry, message, tmp_path):
    file = tmp_path / "list.toml"
    file.write_text(f'repository = "o/n"\nrevision = "v1"\nsource = "http://x/{{path}}"\n[[files]]\n{entry}')
    with pytest.raises(MoelineError, match=message):
        foundry_files.read_list(file)


@needs_gauntlet
def test_the_recorded_list_is_that_of_the_real_data(tmp_path, capsys):
    assert cli.main(["gauntlet", "check", "--to", str(GAUNTLET), "--home", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "33 files of Foundry v0.22.0" in shown and "hellaswag, mmlu, squad" in shown
    assert cli.main(["gauntlet", "fetch", "--from", str(GAUNTLET), "--to", str(tmp_path / "data"), "--tasks", "svamp", "--home", str(tmp_path)]) == 0
    wanted = sorted(p.relative_to(tmp_path / "data").as_posix() for p in Path(tmp_path / "data").rglob("*") if p.is_file())
    assert wanted[0] == "local_data/symbolic_problem_solving/svamp.jsonl" and all(name.startswith("yamls/") for name in wanted[1:])
