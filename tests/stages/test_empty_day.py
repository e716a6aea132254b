"""Days that end without a document: re-landed text, forgotten text, text that is all poor. They are prepared like any other day, and say so."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_clean import documents

from jobs import forget, recipes, run, stale
from jobs.config import PREPARE_STAGES, CleanConfig
from jobs.contract import MoelineError, StageResult, is_held_out
from jobs.environment import Environment
from jobs.services import delta, results, training_data
from jobs.stages import clean
from jobs.stages.ingest import doc_id

RECIPE = replace(recipes.load("smoke"), clean=CleanConfig(rules=(("*", ()),), redact=()))
FULL, RELANDED, ALONE = "2026-11-01", "2026-11-02", "2026-11-03"
HELD_BY = ("documents", "clean_documents", "unique_documents", "training_documents", "sequences", "fingerprints", "benchmark_items")


@pytest.fixture(scope="module")
def built(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose first day is real text, enough for the tokenizer and with held-out documents."""
    env = Environment.load("local", tmp_path_factory.mktemp("built") / "home")
    chunks = [chunk for module in (inspect, json, json.decoder, json.encoder) for chunk in _chunks(inspect.getsource(module))]
    land(env, FULL, {f"u:{place}": text for place, text in enumerate(chunks)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(spark), "stop", lambda session: None)
        prepare(env, FULL)
    return env.home


@pytest.fixture
def home(built: Path, spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setattr(type(spark), "stop", lambda session: None)  # a stage ends the session of its process: here all tests share one
    monkeypatch.setattr(recipes, "load", lambda name, **_: RECIPE)
    shutil.copytree(built, tmp_path / "home")
    return Environment.load("local", tmp_path / "home")


def _chunks(source: str) -> Iterable[str]:
    lines = source.splitlines(keepends=True)
    return ("".join(lines[at : at + 12]) for at in range(0, len(lines), 12))


def land(env: Environment, day: str, texts: Mapping[str, str]) -> None:
    file = env.landing / "web" / day / "a.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"uri": uri, "text": text}) + "\n" for uri, text in texts.items() if text.strip()))


def prepare(env: Environment, day: str) -> dict[str, StageResult]:
    return {stage: run.run_stage(env, stage, RECIPE, interval=day) for stage in PREPARE_STAGES}


def rows(env: Environment, table: str, day: str) -> list[dict[str, Any]]:
    """The day's rows at the version its stage recorded last."""
    newest = max(
        (r for stage in PREPARE_STAGES for r in results.of_stage(env, stage) if table in r.outputs and r.interval == day), key=lambda r: r.table(table)
    )
    return delta.dataset(env, newest.table(table), where_in=[day]).to_table().to_pylist()


def test_a_day_that_brings_nothing_new_is_prepared_empty_and_trains_with_the_others(home: Environment) -> None:
    held_out = [r for r in rows(home, "training_documents", FULL) if r["split"] == "held_out"]
    assert held_out and all(is_held_out(r["doc_id"]) for r in held_out)
    land(home, RELANDED, {f"again:{r['uri']}": r["text"] for r in rows(home, "documents", FULL)[:20]})
    done = prepare(home, RELANDED)
    assert (done["deduplicate"].metrics["documents"], done["deduplicate"].metrics["kept"]) == (20, 0)
    assert {r["scope"] for r in rows(home, "duplicates", RELANDED)} == {"exact_other_day"}
    for table in ("unique_documents", "fingerprints", "training_documents", "sequences", "benchmark_items"):
        assert rows(home, table, RELANDED) == [], table
    for stage, table in (("deduplicate", "unique_documents"), ("decontaminate", "training_documents"), ("pack", "sequences")):
        assert f"{table}: ExpectTableRowCountToBeBetween(table): observed 0" in done[stage].metrics["check_warnings"]
    assert done["pack"].metrics["tokens"] == 0 and done["summarise"].metrics["duplicate"] == done["summarise"].metrics["landed"] == 20
    assert all(result.reused for result in prepare(home, RELANDED).values()), "an empty day is done like any other"

    where = [FULL, RELANDED]
    written = training_data.write(delta.dataset(home, done["pack"].table("sequences"), where_in=where), home.home / "training")
    assert written.intervals == (FULL,) and written.sequences["train"] == len([r for r in rows(home, "sequences", FULL) if r["split"] == "train"])


def test_a_day_of_which_every_document_is_forgotten_is_prepared_empty_even_without_its_files(home: Environment) -> None:
    text = "One person's letter, which nobody else ever wrote, on a page of its own."
    land(home, ALONE, {"u:letter": text})
    prepare(home, ALONE)
    secret = doc_id("web", "u:letter", text)
    assert [r["doc_id"] for r in rows(home, "training_documents", ALONE)] == [secret]
    (home.landing / "web" / ALONE / "a.jsonl").unlink()
    with pytest.raises(MoelineError, match=f"Nothing has landed for {ALONE}"):
        run.run_stage(home, "ingest", RECIPE, interval=ALONE)
    found = forget.forget(home, secret, here=True)
    assert (found["gone"], found["prepared_again"], found["to_do"]) == (True, [f"smoke {ALONE}"], [])
    assert [rows(home, table, ALONE) for table in HELD_BY] == [[]] * len(HELD_BY)
    assert forget.forget(home, secret, here=True)["prepared_again"] == [] and stale.stale_days(home, RECIPE) == []


def test_a_few_documents_may_all_be_poor_a_hundred_may_not(spark: Any, tools: Any) -> None:
    config = CleanConfig(rules=(("*", ("gopher_quality",)),))
    few, many = ([("web", None, f"too short {n}") for n in range(count)] for count in (99, 100))
    assert clean.run(config, {"documents": documents(spark, *few)}, tools).refused == {}
    refused = clean.run(config, {"documents": documents(spark, *many)}, tools).refused["clean_documents", "SomethingIsKept"]
    assert refused["documents"] == 100 and refused["rejected_by_rule"]["gopher_quality.words"] == 100
