"""The landing zone behind a URL: a real HTTP server over a folder lists and sends the same files as the folder itself."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import http.server
import json
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services import landing, readers

DAY = "2026-11-01"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    broken = ""

    def do_GET(self) -> None:
        if self.broken and self.path.endswith(self.broken):
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "zone"
    day = root / "web" / DAY
    (day / "deeper").mkdir(parents=True)
    (day / "a.jsonl").write_text(json.dumps({"text": "one", "uri": "u:1"}) + "\n")
    (day / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "two"}).encode()))
    (day / ".half.jsonl").write_text("{")
    (day / "deeper" / "page.md").write_text("three")
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(300)]}), day / "c.parquet")
    (root / "web" / "notes").mkdir()
    (root / "docs" / "2026-11-02").mkdir(parents=True)
    (root / "docs" / "2026-11-02" / "d.txt").write_text("four")
    (root / "docs" / "2026-11-03").mkdir()
    return root


@pytest.fixture
def url(folder):
    handler = type("Handler", (_Quiet,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        thread.join()


def at(env: Environment, where) -> Environment:
    return dataclasses.replace(env, landing=where)


def read(file: landing.LandedFile) -> list[readers.Record]:
    return list(readers.read(file.path, file.relative, text_column="text", max_bytes=1000))


def test_a_server_lists_the_same_files_with_the_same_identity_as_its_folder(env, folder, url):
    here, there = landing.files(at(env, folder), DAY), landing.files(at(env, url[0]), DAY)
    assert [(f.relative, f.source, f.interval, f.sha256) for f in there] == [(f.relative, f.source, f.interval, f.sha256) for f in here]
    assert [f.relative.removeprefix(f"web/{DAY}/") for f in there] == ["a.jsonl", "b.jsonl.gz", "c.parquet", "deeper/page.md"]
    assert landing.days(at(env, url[0])) == landing.days(at(env, folder)) == [DAY, "2026-11-02"]
    assert landing.files(at(env, url[0]), "2026-12-01") == landing.files(at(env, folder), "2026-12-01") == ()


def test_a_file_that_landed_is_there_until_its_owner_takes_it_back(env, folder, url):
    for zone in (at(env, folder), at(env, url[0]), at(env, f"file://{folder}")):
        assert landing.is_there(zone, f"web/{DAY}/a.jsonl") and not landing.is_there(zone, f"web/{DAY}/gone.jsonl")


def test_every_format_reads_the_same_over_the_wire(env, folder, url):
    here, there = ([read(f) for f in landing.files(at(env, where), DAY)] for where in (folder, url[0]))
    assert there == here
    assert sum(len(records) for records in there) == 303 and all(record.error is None for records in there for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.gz", "c.parquet", "page.md"])
def test_a_server_that_stops_answering_is_no_broken_content(name, env, url):
    """Nothing may be quarantined for it: the attempt fails and is tried again."""
    file = next(f for f in landing.files(at(env, url[0]), DAY) if f.relative.endswith(name))
    url[1].broken = name
    with pytest.raises(OSError, match=r"503|Service Unavailable|ClientResponseError"):
        read(file)


@pytest.mark.parametrize("checksum", ["ETag", "md5Hash", "crc32c"])
def test_a_stores_own_checksum_is_the_identity_and_nothing_is_sent(checksum, env, monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe(f"/zone/web/{DAY}/a.txt", b"one")
    plain = landing.files(at(env, "memory://zone"), DAY)[0].sha256

    def find(said):
        return lambda path, **_: {f"/zone/web/{DAY}/a.txt": {"name": "a.txt", "type": "file", "size": 3, checksum: said}}

    monkeypatch.setattr(type(store), "find", lambda self, path, said="x", **settings: find("x")(path))
    monkeypatch.setattr(type(store), "open", lambda *_, **__: pytest.fail("the content was read"))
    first = landing.files(at(env, "memory://zone"), DAY)[0].sha256
    monkeypatch.setattr(type(store), "find", lambda self, path, **settings: find("y")(path))
    assert len({plain, first, landing.files(at(env, "memory://zone"), DAY)[0].sha256}) == 3


def test_a_listing_that_names_files_elsewhere_lands_none_of_them(env, monkeypatch):
    store = fsspec.filesystem("memory")
    store.pipe(f"/zone/web/{DAY}/good.txt", b"one")
    names = ("good.txt", "../../../secret.txt", ".hidden.txt")
    listed = {f"/zone/web/{DAY}/{name}": {"type": "file", "size": 3, "ETag": "1"} for name in names} | {"/etc/passwd": {"type": "file", "ETag": "1"}}
    monkeypatch.setattr(type(store), "find", lambda self, path, **_: listed)
    assert [f.relative for f in landing.files(at(env, "memory://zone"), DAY)] == [f"web/{DAY}/good.txt"]


@pytest.mark.parametrize(
    ("where", "said"),
    [("nosuch://x/y", "nosuch"), ("zip://::memory://a.zip", "chain of stores"), ("http://127.0.0.1:9/zone", "could not be read|cannot be opened")],
)
def test_a_zone_that_cannot_be_asked_is_named(where, said, env):
    with pytest.raises(MoelineError, match=said):
        landing.days(at(env, where))


def test_the_environment_file_may_give_a_url(tmp_path):
    text = (REPO / "infra/env/local.toml").read_text()
    file = tmp_path / "store.toml"
    file.write_text(text.replace('landing = "landing"', 'landing = "s3://bucket/zone"'))
    found = Environment.load(str(file), tmp_path / "home")
    assert found.landing == "s3://bucket/zone" and found.warehouse == tmp_path / "home" / "warehouse"
    with pytest.raises(MoelineError, match=r"s3://bucket/zone.*local folder only"):
        landing.local(found)
