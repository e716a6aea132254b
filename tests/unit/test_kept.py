"""What is kept of tables and results by file is what reading everything gives, whatever happened to the files between."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest
from builds import Build, forecast_only, write

from jobs import decision
from jobs.services import delta, report, results
from jobs.services.kept import Kept


@pytest.fixture
def read(monkeypatch):
    """How many files were read of tables, and how many results."""
    seen = {"files": 0, "results": 0}
    rows, parse = delta.rows_by_file, results.StageResult.from_json

    def counted(env, name, found, columns=None):
        seen["files"] += len(found)
        return rows(env, name, found, columns)

    def parsed(text):
        seen["results"] += 1
        return parse(text)

    monkeypatch.setattr(delta, "rows_by_file", counted)
    monkeypatch.setattr(results.StageResult, "from_json", staticmethod(parsed))
    return seen


def sorted_rows(rows):
    return sorted(rows, key=repr)


def same(env, kept):
    for name, columns in (("costs", report.CHARGE), ("scores", report.SCORE), ("forecasts", None), ("registrations", None)):
        assert sorted_rows(kept.rows(env, name, columns)) == sorted_rows(delta.rows(env, name, columns=columns)), name
    for stage in report.BUILD:
        assert kept.of_stage(env, stage) == results.of_stage(env, stage), stage


def test_after_anything_that_happens_it_is_what_reading_everything_gives(env):
    kept, chance = Kept(), random.Random(3)
    same(env, kept)
    for number in range(1, 7):
        build = Build(number, accuracy=0.4, loss=4.0, core_hours=1.0, promoted=number == 3)
        (write if chance.random() < 0.7 else forecast_only)(env, build)
        same(env, kept)
    again = results.find(env, "train", next(r.run_key for r in results.of_stage(env, "train")))
    results.record(env, dataclasses.replace(again, metrics={**again.metrics, "tokens": 5}))  # recorded anew under the same key
    same(env, kept)
    assert any(r.metrics.get("tokens") == 5 for r in kept.of_stage(env, "train"))
    table = delta.open_table(env, "scores")
    table.delete(f"run_key = '{Build(1, 0.4, 4.0, 1.0).key('evaluate')}'")
    table.optimize.compact()
    same(env, kept)


def test_only_what_is_new_is_read(env, read):
    kept = Kept()
    for number in (1, 2):
        write(env, Build(number, accuracy=0.4, loss=4.0, core_hours=1.0))
    report.Records(env, kept)
    assert read["results"] == 10 and read["files"] > 10
    before = dict(read)
    report.Records(env, kept)
    assert read == before
    write(env, Build(3, accuracy=0.4, loss=4.0, core_hours=1.0))
    report.Records(env, kept)
    assert read == {"results": 15, "files": before["files"] + before["files"] // 2}


def test_two_homes_are_kept_apart(env, tmp_path):
    from jobs.environment import Environment

    other, kept = Environment.load("local", tmp_path / "other"), Kept()
    write(env, Build(1, accuracy=0.4, loss=4.0, core_hours=1.0))
    write(other, Build(2, accuracy=0.4, loss=4.0, core_hours=1.0))
    assert [r.recipe for r in kept.of_stage(env, "train")] == ["tiny"] and len(kept.rows(env, "registrations")) == 1
    assert {r["model_version"] for r in kept.rows(other, "registrations")} == {"2"}
    same(env, kept)
    same(other, kept)


def test_making_figures_changes_nothing_that_is_kept(env):
    kept = Kept()
    for number in (1, 2):
        write(env, Build(number, accuracy=0.4, loss=4.0, core_hours=1.0, wasted_hours=0.5, promoted=True))
    first = report.Records(env, kept)
    before = copy.deepcopy((first.costs, first.by_stage, first.registrations, dict(first.scores_of), dict(first.forecasts_of)))
    decision.figures(env, records=first)
    report.one(first, Build(1, 0.4, 4.0, 1.0).key("train"))
    assert (first.costs, first.by_stage, first.registrations, dict(first.scores_of), dict(first.forecasts_of)) == before
