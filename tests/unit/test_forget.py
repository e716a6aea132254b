"""`moeline forget` on real tables: the document is nowhere on disk, everything else is as it was, and who saw it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import arrow_stages
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrow_stages import prepare

from expectations.tables import TABLES
from jobs import cli, forget, purge, recipes, run, stale
from jobs.contract import MoelineError, is_held_out
from jobs.environment import Environment
from jobs.explain import explain
from jobs.services import delta, results, tombstones
from jobs.stages.ingest import doc_id

RECIPE = recipes.load("smoke")
FIRST, SECOND, OTHER = "2026-11-01", "2026-11-02", "2026-11-03"
PLANTED = "Quetzalcoatl"
SECRET = f"my name is {PLANTED}\nand I live at {PLANTED} street"
TARGET, COPY = doc_id("web", "u:target", SECRET), doc_id("web", "u:copy", SECRET)


def held_out(text: str) -> str:
    """A uri under which this text is held out from training."""
    return next(uri for n in range(10_000) if is_held_out(doc_id("web", uri := f"h:{n}", text)))


HELD_TEXT = f"a held-out line of {PLANTED}\nanswer {PLANTED}"
HELD_URI = held_out(HELD_TEXT)
HELD = doc_id("web", HELD_URI, HELD_TEXT)
STAYS_TEXT = "what another held-out text asks\nwhat it answers"
STAYS = doc_id("web", held_out(STAYS_TEXT), STAYS_TEXT)


def row(text: str, uri: str) -> dict[str, str]:
    return {"text": text, "uri": uri}


LANDED = {
    FIRST: [row(SECRET, "u:target"), row(SECRET, "u:target"), row(HELD_TEXT, HELD_URI), row(STAYS_TEXT, held_out(STAYS_TEXT)), row("more LICENCE", "u:bad"),
            *(row(f"plain words {n} of the first day", f"u:1-{n}") for n in range(6))],
    SECOND: [row(SECRET, "u:copy"), row("this quotes a held-out line of " + PLANTED, "u:quotes"), row("plain text of the second day", "u:2")],
    OTHER: [row(f"plain text {n} of another day", f"u:3-{n}") for n in range(3)],
}  # fmt: skip


def arrow_pipeline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "stage_module", arrow_stages.module)
    patch.setattr(run, "check_staged", lambda *_: {})  # rows of small stages; the rules have tests of their own
    patch.setattr(run, "_warm_up_checks", lambda *_: None)


def land(env: Environment, day: str, rows: list[dict], name: str = "a.jsonl") -> None:
    file = env.landing / "web" / day / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))


def trained(env: Environment, seed: int) -> str:
    """A training of two steps of one sequence each; which it draws depends on the seed."""
    return run.run_stage(env, "train", dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, seed=seed))).run_key


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A home with three prepared days, trainings with several orders, an evaluation, its review and a registered model."""
    env = Environment.load("local", tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as patch:
        arrow_pipeline(patch)
        for day, rows in LANDED.items():
            land(env, day, rows)
        prepare(env, RECIPE, LANDED)
        keys = [trained(env, seed) for seed in range(1, 7)]
        run.run_stage(env, "evaluate", RECIPE)
        run.run_stage(env, "review", RECIPE)
    lineage = {"stages": {"train": {"run_key": keys[0]}}}
    registered = {"model_name": "moeline", "model_version": "3", "aliases": [], "promoted": False, "gates": "[]", "moved_by": "x"}
    registered["lineage"] = json.dumps(lineage)
    folder = env.home / "staged"
    folder.mkdir()
    columns = pa.schema([f for f in delta.arrow_schema(TABLES["registrations"]) if f.name != "run_key"])
    pq.write_table(pa.Table.from_pylist([{**registered, "registered_at": 0}], schema=columns), folder / "r.parquet")
    delta.publish(env, "registrations", folder, partition_value="r1", metadata={})
    return env.home


@pytest.fixture
def home(built, tmp_path, monkeypatch) -> Environment:
    arrow_pipeline(monkeypatch)
    shutil.copytree(built, tmp_path / "home")
    return Environment.load("local", tmp_path / "home")


def texts_on_disk(env: Environment) -> list[Path]:
    """Files outside the landing zone that hold the planted word: in a value of a Parquet file, as token ids, or as bytes."""
    tokens = ",".join(str(byte) for byte in PLANTED.encode())
    found = []
    for file in sorted(p for p in env.home.rglob("*") if p.is_file() and env.landing not in p.parents):
        if file.suffix == ".parquet":
            rows = pq.ParquetFile(file).read().to_pylist()
            if any(PLANTED in str(r) or tokens in str(r.get("tokens")).replace(" ", "") for r in rows):
                found.append(file)
        elif PLANTED.encode() in file.read_bytes():
            found.append(file)
    return found


def contents(env: Environment) -> dict[str, list[str]]:
    """All rows that recorded results name, of tables that hold documents or answers, as text; files and times left out."""
    skipped = {"costs", "checks"}
    return {name: sorted(str(r) for r in delta.rows(env, name)) for name in TABLES if name not in skipped}


def files_of_day(env: Environment, day: str) -> dict[str, str]:
    return {str(f.relative_to(env.home)): hashlib.sha256(f.read_bytes()).hexdigest() for f in env.warehouse.glob(f"*/interval={day}/*.parquet")}


def steps_reading(env: Environment, run_key: str, ids: set[int]) -> int:
    order = pq.read_table(env.artifacts / "checkpoints" / run_key / "order.parquet").to_pylist()
    return sum(r["interval"] == FIRST and r["sequence_id"] in ids for r in order)


def test_it_is_nowhere_on_disk_and_every_other_document_is_as_it_was(home):
    assert len(texts_on_disk(home)) > 5
    before, other = contents(home), files_of_day(home, OTHER)
    found = forget.forget(home, TARGET, with_copies=True, here=True)
    assert (found["gone"], found["exit_status"], found["left"], found["to_do"]) == (True, 0, [], [])
    assert found["prepared_again"] == [f"smoke {FIRST}", f"smoke {SECOND}"]
    assert found["landing_files"] == [f"web/{FIRST}/a.jsonl", f"web/{SECOND}/a.jsonl"]
    forget.forget(home, HELD, here=True)
    forget.forget(home, doc_id("web", "u:quotes", LANDED[SECOND][1]["text"]), here=True)
    assert texts_on_disk(home) == []
    assert files_of_day(home, OTHER) == other
    after = contents(home)
    gone = {TARGET, COPY, HELD, doc_id("web", "u:quotes", LANDED[SECOND][1]["text"])}
    for name in ("documents", "clean_documents", "rejections", "unique_documents", "fingerprints", "training_documents", "scores", "registrations"):
        assert after[name] == [r for r in before[name] if not any(one in r for one in gone)], name
    assert len(after["documents"]) == 16 - 4 and len(after["quarantine"]) == 5
    assert stale.stale_days(home, RECIPE) == []
    for number in gone:
        assert forget.check(home, number)["exit_status"] == 0


def test_trainings_that_read_it_are_listed_with_steps_and_model_versions_and_others_are_not(home):
    sequences = results.newest(home, "pack", interval=FIRST).table("sequences")
    ids = {r["sequence_id"] for r in delta.dataset(home, sequences, where_in=[FIRST]).to_table().to_pylist() if TARGET in r["doc_ids"]}
    expected = {r.run_key: n for r in results.of_stage(home, "train") if (n := steps_reading(home, r.run_key, ids))}
    assert 0 < len(expected) < 6
    registered = json.loads(delta.rows(home, "registrations")[0]["lineage"])["stages"]["train"]["run_key"]
    found = forget.forget(home, TARGET, here=True)
    assert {t["run_key"]: t["read_at_steps"] for t in found["trainings"]} == expected
    assert {t["run_key"]: t["models"] for t in found["trainings"]} == {key: ["moeline v3"] if key == registered else [] for key in expected}
    assert forget.forget(home, TARGET, here=True)["trainings"] == found["trainings"]  # the rows are gone, the answer is not
    rebuilt = {row["run_key"] for row in found["unreadable"] if row["stage"] == "train"}
    assert rebuilt == {r.run_key for r in results.of_stage(home, "train")}  # all read the day at a version that is gone
    other = explain(home, "u:1-0")  # its own trainings cannot be told any more, and that is said
    assert {t["tokens"] for t in other["days"][0]["trainings"]} == {None}
    with pytest.raises(MoelineError, match="can no longer be read: files of it held a document that was forgotten"):
        delta.dataset(home, sequences, where_in=[FIRST]).to_table()


def test_a_training_without_a_written_order_counts_as_one_that_saw_it_and_an_unfinished_one_is_told(home):
    first, second, *others = (r.run_key for r in results.of_stage(home, "train"))
    for run_key in (first, *others):
        (home.artifacts / "checkpoints" / run_key / "order.parquet").unlink()
    (home.warehouse / "_results" / "train" / f"{second}.json").unlink()  # killed before it was recorded; its written order is all there is
    order = home.artifacts / "checkpoints" / second / "order.parquet"
    everywhere = pq.read_table(order).schema
    days = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([FIRST]))
    rows = pa.table([pa.array(range(40), pa.int64()), days, pa.array([n % 10 for n in range(40)], pa.int64())], schema=everywhere)
    pq.write_table(rows, order)
    found = {t["run_key"]: t for t in forget.forget(home, TARGET, here=True)["trainings"]}
    assert set(found) == {first, second, *others}
    assert {found[key]["read_at_steps"] for key in (first, *others)} == {None}
    assert (found[second]["read_at_steps"], found[second]["finished"]) == (4, False)  # one of ten sequences, in forty steps of one


def test_an_attempt_that_runs_on_the_old_rows_is_not_gone_until_it_ends(home):
    from jobs.services import ledger

    running = ledger.Running(home, ledger.Attempt("train", "smoke", "k" * 32, None, home.stage_resources("train"), time.time()))
    found = forget.forget(home, TARGET, here=True)
    assert (found["left"], found["running"], found["gone"], found["exit_status"]) == ([], [f"train {'k' * 32}"], False, 1)
    running.close("succeeded")
    assert forget.check(home, TARGET)["gone"]


def test_a_held_out_document_takes_its_items_and_their_answers_with_it(home):
    asked = {r["item_id"] for r in delta.rows(home, "responses")}
    assert asked == {f"{HELD}:0", f"{STAYS}:0"}
    evaluated = results.newest(home, "evaluate")
    assert PLANTED in str([r for r in delta.rows(home, "responses") if r["item_id"] == f"{STAYS}:0"])  # a wrong answer taken from the document
    found = forget.forget(home, HELD, here=True)
    assert found["gone"] and found["trainings"] == [] and found["prepared_again"] == [f"smoke {FIRST}", f"smoke {SECOND}"]
    assert delta.rows(home, "contamination") == []  # the document that was dropped for its item is back
    assert "u:quotes" in {r["uri"] for r in delta.rows(home, "training_documents")}
    assert [r["item_id"] for r in delta.rows(home, "benchmark_items")] == [f"{STAYS}:0"]
    assert delta.rows(home, "responses") == delta.rows(home, "verdicts") == []
    (group,) = delta.rows(home, "failure_groups")
    assert HELD not in str(group) and (group["item_ids"], group["words"]) == ([], [])
    now = results.find(home, "evaluate", evaluated.run_key)
    assert now.table("responses") > evaluated.table("responses") and now.metrics == evaluated.metrics
    assert results.newest(home, "review").inputs["responses"] == now.outputs["responses"]


def test_a_day_that_is_forgotten_whole_may_have_lost_its_files_any_other_keeps_its_rows(home):
    for file in (home.landing / "web" / OTHER).iterdir():
        file.unlink()
    ids = [doc_id("web", f"u:3-{n}", f"plain text {n} of another day") for n in range(3)]
    for one in ids[:2]:
        with pytest.raises(MoelineError, match=f"Nothing has landed for {OTHER}"):
            forget.forget(home, one, here=True)
    assert {r["doc_id"] for r in delta.rows(home, "documents") if r["interval"] == OTHER} == set(ids)
    found = forget.forget(home, ids[2], here=True)
    assert (found["gone"], found["prepared_again"], found["to_do"]) == (True, [f"smoke {OTHER}"], [])
    assert not [r for name in ("documents", "training_documents", "sequences") for r in delta.rows(home, name) if r["interval"] == OTHER]
    assert [forget.forget(home, one, here=True)["gone"] for one in ids] == [True, True, True]  # the first two were stopped before answers went


class Killed(BaseException):
    pass


def effects(monkeypatch, stop_before: int | None) -> list[str]:
    """Every rename, commit and removal this process makes, noted; with ``stop_before`` the process ends instead of making that one."""
    made: list[str] = []

    def watched(name, real):
        def call(*args, **kwargs):
            if len(made) == stop_before:
                raise Killed
            made.append(name)
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "replace", watched("replace", os.replace))
    monkeypatch.setattr(os, "unlink", watched("unlink", os.unlink))
    monkeypatch.setattr(delta, "publish", watched("publish", delta.publish))
    return made


def ended(env: Environment) -> None:
    """Attempts that this process left open look as those of a killed process do."""
    for file in (env.home / "attempts").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"process_started_at": ""}))


@pytest.fixture(scope="module")
def uninterrupted(built, tmp_path_factory):
    """(effects, rows, what was told) of forgetting the held-out document with nothing in the way."""
    home = tmp_path_factory.mktemp("uninterrupted") / "home"
    shutil.copytree(built, home)
    env = Environment.load("local", home)
    with pytest.MonkeyPatch.context() as patch:
        arrow_pipeline(patch)
        made = effects(patch, None)
        found = forget.forget(env, HELD, here=True)
        made = list(made)
    return made, contents(env), found


@pytest.mark.parametrize("share", [n / 11 for n in range(11)] + [0.97, 0.99])
def test_killed_anywhere_and_run_again_it_ends_the_same(home, monkeypatch, uninterrupted, share):
    made, rows, told = uninterrupted
    with monkeypatch.context() as patch, pytest.raises(Killed):
        arrow_pipeline(patch)
        effects(patch, int(share * len(made)))
        forget.forget(home, HELD, here=True)
    ended(home)
    found = forget.forget(home, HELD, here=True)
    assert found["gone"] and found["exit_status"] == 0
    assert contents(home) == rows
    assert found["trainings"] == told["trainings"] and found["days"] == told["days"]
    assert not any(HELD_TEXT in str(pq.ParquetFile(f).read().to_pylist()) for f in home.warehouse.rglob("*.parquet") if "_delta_log" not in f.parts)


KILLED = """
import sys
import pytest
from test_forget import HELD, Environment, arrow_pipeline, forget
with pytest.MonkeyPatch.context() as patch:
    arrow_pipeline(patch)
    print("ready", flush=True)
    forget.forget(Environment.load("local", sys.argv[1]), HELD, here=True)
"""


def test_killed_by_the_system_again_and_again_it_ends_the_same(home, uninterrupted):
    """SIGKILL, at later and later moments of the same home, until a process comes to its end by itself."""
    _, rows, told = uninterrupted
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command, killed = [sys.executable, "-c", KILLED, str(home.home)], 0
    for wait in (0.15, 0.4, 0.8, 60.0):
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout.readline() == b"ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(wait)
            child.kill()
        killed += child.returncode == -signal.SIGKILL
    assert killed >= 1 and child.returncode == 0
    found = forget.forget(home, HELD, here=True)  # pids of killed processes are no running attempts
    assert (found["gone"], found["prepared_again"], found["removed_files"]) == (True, [], 0)
    assert contents(home) == rows and found["trainings"] == told["trainings"]


def test_asked_twice_it_changes_nothing_more(home):
    forget.forget(home, TARGET, why="asked by mail", here=True)
    before = {f: f.read_bytes() for f in home.warehouse.rglob("*") if f.is_file() and "_forgotten" not in f.parts}
    found = forget.forget(home, TARGET, here=True)
    assert {f: f.read_bytes() for f in home.warehouse.rglob("*") if f.is_file() and "_forgotten" not in f.parts} == before
    assert (found["prepared_again"], found["removed_files"], found["why"], found["gone"]) == ([], 0, "asked by mail", True)


def test_without_platform_nothing_is_removed_until_the_days_are_done(home, capsys):
    asked = ["forget", TARGET, "--home", str(home.home)]
    assert cli.main(asked) == 1
    shown = capsys.readouterr().out
    assert shown.startswith(f"NOT GONE: {TARGET}") and "moeline backfill --stale --recipe smoke" in shown
    assert [(d.interval, d.forgotten) for d in stale.stale_days(home, RECIPE)] == [(FIRST, 1)]
    assert cli.main(["forget", "--check", TARGET, "--home", str(home.home)]) == 1
    capsys.readouterr()
    assert cli.main([*asked, "--here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gone"] is True
    assert cli.main(["forget", "--check", TARGET, "--home", str(home.home)]) == 0
    assert capsys.readouterr().out.startswith(f"GONE: {TARGET}")


def test_a_copy_is_named_and_stays_unless_asked_for(home):
    found = forget.forget(home, TARGET, here=True)
    assert [(c["doc_id"], c["interval"]) for c in found["copies"]] == [(COPY, SECOND)]
    assert COPY in {r["doc_id"] for r in delta.rows(home, "training_documents")}  # nobody keeps it now but its own day
    assert found["prepared_again"] == [f"smoke {FIRST}", f"smoke {SECOND}"]
    again = forget.forget(home, TARGET, with_copies=True, here=True)
    assert (again["copies"], again["doc_ids"], again["prepared_again"]) == ([], sorted([TARGET, COPY]), [f"smoke {SECOND}"])
    assert COPY not in str(contents(home))


def test_what_lands_again_under_a_forgotten_uri_stays_out(home):
    forget.forget(home, None, uri="u:target", here=True)
    land(home, "2026-11-04", [row("something new", "u:target"), row("an ordinary text", "u:4")])
    land(home, "2026-11-05", [row(SECRET, "u:target"), row("an ordinary text of the fifth", "u:5")])
    prepare(home, RECIPE, ["2026-11-04", "2026-11-05"])
    assert {r["uri"] for r in delta.rows(home, "documents") if r["interval"] > OTHER} == {"u:4", "u:5"}
    assert stale.stale_days(home, RECIPE) == []


def test_several_documents_of_one_uri_are_listed_and_taken_only_all_together(home):
    land(home, "2026-11-04", [row("a later text", "u:target"), row("an ordinary text", "u:4")])
    prepare(home, RECIPE, ["2026-11-04"])
    later = doc_id("web", "u:target", "a later text")
    with pytest.raises(MoelineError, match="2 documents landed under 'u:target'") as refused:
        forget.forget(home, None, uri="u:target", here=True)
    assert TARGET in str(refused.value) and later in str(refused.value)
    assert tombstones.requests(home) == []
    found = forget.forget(home, None, uri="u:target", all_of_uri=True, here=True)
    assert (found["left"], found["running"], found["to_do"], found["doc_ids"]) == ([], [], [], sorted([TARGET, later]))


@pytest.mark.parametrize(
    ("asked", "said"), [([TARGET[:12]], "not a whole doc_id"), (["f" * 32], "No document"), (["--uri", "u:none"], "No document"), ([], "one of the two")]
)
def test_what_is_not_one_document_is_refused_and_nothing_is_written(home, capsys, asked, said):
    assert cli.main(["forget", *asked, "--home", str(home.home)]) == 1
    assert said in capsys.readouterr().err
    assert tombstones.requests(home) == []


def test_refused_rows_and_folders_of_dead_attempts_go_too_and_what_is_left_is_found(home):
    refused, dead = home.warehouse / "_refused/clean/x/clean_documents", home.warehouse / "_staging/dead/documents"
    for folder in (refused, dead):
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"doc_id": [TARGET], "text": [SECRET]}), folder / "part-0.parquet")
    noted = home.artifacts / "notes.json"
    noted.write_text(json.dumps({"about": TARGET}))
    found = forget.forget(home, TARGET, here=True)
    assert not found["gone"] and [(r["where"], r["file"]) for r in found["left"]] == [("a file", "artifacts/notes.json")]
    assert not (refused / "part-0.parquet").exists() and not dead.exists()
    assert "still held by" in forget.render(found)
    noted.unlink()
    assert forget.check(home, TARGET)["gone"] and purge.left(home, [COPY])
