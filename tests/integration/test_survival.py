"""What survives: stages killed at a random moment, a day of broken files, a failing check, another recipe on the same warehouse.

Real stage processes on the engines of the running platform, each scenario with a warehouse of its own. Killed runs are repeated and
their tables compared with an undisturbed run's.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
import zstandard
from stage_processes import Places, command, kill_at_random, run, start, table_rows, written_by

from jobs import gc, recipes, stale
from jobs.environment import REPO, Environment
from jobs.services import delta, ledger, report

pytestmark = pytest.mark.integration

DAYS = ("2026-11-01", "2026-11-02")
PREPARE = ("ingest", "clean", "deduplicate")  # the later stages of a day depend on no other day; kills in all of them: tests/chaos


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """About a megabyte of real code and docs over two days, the second with copies of documents of the first."""
    from jobs import sample_data

    landing = tmp_path_factory.mktemp("corpus") / "landing"
    sample_data.write(landing, list(DAYS), target_bytes=1_500_000)
    first = next((landing / "python-code" / DAYS[0]).glob("*.zst")).read_bytes()
    (landing / "python-code" / DAYS[1] / "copies.jsonl.zst").write_bytes(first)
    return landing


@pytest.fixture(scope="module")
def place(platform, corpus, tmp_path_factory) -> Places:
    return Places(platform, corpus, tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def calm(place) -> tuple[Environment, dict[str, float]]:
    """Both days prepared undisturbed, and how long each stage takes."""
    env, seconds = place("calm"), {}
    for day in DAYS:
        for stage in PREPARE:
            started = time.monotonic()
            run(env, stage, day)
            seconds[stage] = time.monotonic() - started
    return env, seconds


def test_killed_preparation_converges_to_the_undisturbed_tables(place, calm):
    (undisturbed, seconds), wild = calm, place("wild")
    luck, killed = random.Random(7), 0
    for day in DAYS:
        for stage in PREPARE:
            if stage in ("ingest", "deduplicate"):
                killed += sum(kill_at_random(wild, stage, day, seconds[stage], luck) for _ in range(2))
            run(wild, stage, day)
    assert killed >= 4
    assert table_rows(wild, written_by(PREPARE)) == table_rows(undisturbed, written_by(PREPARE))
    ledger.reconcile(wild)
    outcomes = [c["x_Outcome"] for c in report.attempts(wild)]
    # A process killed before it opened its attempt had computed nothing; every later one has its row.
    assert 1 <= outcomes.count("killed") <= killed
    assert outcomes.count("succeeded") == len(DAYS) * len(PREPARE)
    assert {d["scope"] for d in table_rows(undisturbed, ["duplicates"])["duplicates"]} >= {"exact_other_day"}
    again = [run(wild, stage, DAYS[-1]) for stage in PREPARE]
    assert all(r.reused for r in again), "the second time nothing is computed"
    gc.collect(wild, older_than_seconds=0)
    assert gc.collect(wild, older_than_seconds=0)["counts"] == {} and not [*wild.warehouse.glob("_staging/*")]


def test_two_homes_on_one_warehouse_do_every_piece_of_work_once(place, calm):
    """Locks belong to the warehouse: whoever comes second finds the work recorded, and neither takes the other's working folders for left behind."""
    one = place("one")
    homes = [one, place("two", beside=one)]
    for day in DAYS:
        for stage in PREPARE:
            started = [start(env, stage, day) for env in homes]
            while any(process.poll() is None for process in started):
                gc.collect(homes[1], older_than_seconds=3600)  # of one that knows nothing of the other's attempts
                time.sleep(2)
            assert [process.returncode for process in started] == [0, 0], [process.stderr.read()[-2000:] for process in started]
    assert table_rows(one, written_by(PREPARE)) == table_rows(calm[0], written_by(PREPARE))
    outcomes = [c["x_Outcome"] for c in report.attempts(one)]
    assert outcomes.count("succeeded") == len(DAYS) * len(PREPARE) and "killed" not in outcomes
    assert [*homes[1].home.iterdir()] and not (homes[1].home / "warehouse").exists()


def test_a_day_that_relied_on_a_day_done_again_is_done_again_itself(place):
    env, (first, second) = place("again"), DAYS
    for day in DAYS:
        for stage in ("ingest", "clean", "deduplicate"):
            run(env, stage, day)
    kept = {day: {r["doc_id"] for r in delta.rows(env, "unique_documents") if r["interval"] == day} for day in DAYS}
    relied = [r["kept_doc_id"] for r in delta.rows(env, "duplicates") if r["interval"] == second and r["kept_interval"] == first]
    assert relied and set(relied) <= kept[first]
    next((env.landing / "python-code" / first).glob("*.zst")).unlink()  # its owner took the file back
    for stage in ("ingest", "clean", "deduplicate"):
        run(env, stage, first)
    (stale_day,) = stale.stale_days(env, recipes.load("smoke"))
    assert stale_day.interval == second and 0 < stale_day.lost[first] <= len(relied)
    again = run(env, "deduplicate", second)
    assert not again.reused and run(env, "clean", second).reused
    now = {r["doc_id"] for r in delta.rows(env, "unique_documents") if r["interval"] == second}
    assert now > kept[second], "what the first day no longer keeps, the second one keeps now"
    assert stale.stale_days(env, recipes.load("smoke")) == [] and run(env, "deduplicate", second).reused


def test_a_day_of_broken_files_is_quarantined_priced_and_leaves_other_days_alone(place):
    env = place("bad")
    good, bad = DAYS
    for stage in ("ingest", "clean"):
        run(env, stage, good)
    before = table_rows(env, ["documents", "clean_documents"])
    folder = env.landing / "python-code" / bad
    text = json.dumps({"text": "def f():\n    return 1\n" * 20, "uri": "u"}) + "\n"
    (folder / "broken.jsonl.zst").write_bytes(zstandard.compress(text.encode() * 2000)[:-40])
    (folder / "columns.jsonl").write_text(json.dumps({"body": "no text here"}) + "\n")
    (folder / "junk.parquet").write_bytes(random.Random(1).randbytes(5000))
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "long.jsonl").write_bytes(b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + text.encode())
    (folder / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    result = run(env, "ingest", bad)
    seen = {Path(q["file"]).name for q in delta.rows(env, "quarantine")}
    assert seen == {"broken.jsonl.zst", "columns.jsonl", "junk.parquet", "empty.jsonl", "long.jsonl", "latin.jsonl"}
    assert all(len(q["raw"]) <= 1024 and q["error"] for q in delta.rows(env, "quarantine"))
    assert result.metrics["quarantined"] >= 6
    assert [w for w in result.metrics["check_warnings"] if w.startswith("quarantine")], "the check reports it"
    run(env, "clean", bad)
    after = table_rows(env, ["documents", "clean_documents"])
    for name, rows in before.items():
        assert [r for r in after[name] if r["interval"] == good] == rows
        assert any(r["interval"] == bad for r in after[name])
    assert all(c["BilledCost"] > 0 for c in report.attempts(env))


def test_a_failing_check_stops_the_run_and_says_where_the_rows_are(place):
    env = place("empty")
    folder = env.landing / "python-docs" / "2026-11-05"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": f"too short {n}", "uri": f"u/{n}"}) + "\n" for n in range(100)))
    run(env, "ingest", "2026-11-05")
    arguments, variables = command(env, "clean", "2026-11-05")
    done = subprocess.run(arguments, cwd=REPO, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert 'clean_documents: SomethingIsKept: observed {"documents": 100' in done.stderr
    assert str(env.warehouse / "_refused" / "clean") in done.stderr
    assert (env.warehouse / "_refused" / "clean").is_dir()
    assert delta.latest(env, "clean_documents") is None
    assert [c["x_Outcome"] for c in report.attempts(env)] == ["failed", "succeeded"]


def test_a_killed_registration_makes_exactly_one_version(whole_job):
    from jobs.services import mlflow as registry

    env = whole_job.env
    api = registry.client(env)
    before = {v.version for v in api.search_model_versions("name = 'moeline'")}
    luck = random.Random(3)
    # Another budget is another gate, so this is new work on the model that the whole job trained.
    budget = ("--budget-usd", "0.31")
    usual = min(c["x_WallSeconds"] for c in report.attempts(env) if c["x_Stage"] == "register" and c["x_Outcome"] == "succeeded")
    killed = sum(kill_at_random(env, "register", None, usual, luck, *budget) for _ in range(3))
    assert killed >= 2
    result = run(env, "register", None, *budget)
    new = [v for v in api.search_model_versions("name = 'moeline'") if v.version not in before]
    assert [v.tags["run_key"] for v in new] == [result.run_key]
    rows = [r for r in delta.rows(env, "registrations") if r["run_key"] == result.run_key]
    assert [r["model_version"] for r in rows] == [new[0].version]
    holder = "champion" if rows[0]["promoted"] else "challenger"
    assert api.get_model_version_by_alias("moeline", holder).version == new[0].version
    assert run(env, "register", None, *budget).reused
