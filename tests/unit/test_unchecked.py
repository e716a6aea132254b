"""Days that were prepared before other days' benchmark items existed."""

from __future__ import annotations

import json

from prepared_days import RECIPE

from jobs import cli, unchecked
from jobs.contract import StageResult
from jobs.services import results

FIRST, SECOND, THIRD = "2026-11-01", "2026-11-02", "2026-11-03"


def prepared(env, day: str, version: int, items: int, digest: str | None = "", read: int | None = None, config: str | None = None) -> None:
    metrics = {"own_items": {"next_line": items}} | ({} if digest is None else {"own_items_digest": digest or f"items of {day}"})
    inputs = {} if read is None else {"benchmark_items": f"benchmark_items@{read}"}
    results.record(env, StageResult(
        stage="decontaminate", run_key=f"{day}-{version}", recipe="smoke", interval=day, inputs=inputs,
        outputs={"benchmark_items": f"benchmark_items@{version}"}, metrics=metrics, config_hash=config or RECIPE.config_hash("decontaminate"), cost_usd=0.0,
        wall_seconds=0.0, code_revision="x", finished_at=f"2026-11-04T00:00:{version:02d}Z",
    ))  # fmt: skip


def test_a_day_was_compared_with_the_items_there_were_when_it_was_prepared(env):
    prepared(env, SECOND, 1, 5)
    assert unchecked.unchecked_days(env, RECIPE) == {}
    prepared(env, FIRST, 2, 7, read=1)
    prepared(env, THIRD, 3, 0, read=2)  # no items: nobody can have missed them
    assert unchecked.unchecked_days(env, RECIPE) == {SECOND: {FIRST: 7}}
    prepared(env, SECOND, 4, 5, read=3)  # done again; its own items are what they were
    assert unchecked.unchecked_days(env, RECIPE) == {}


def test_items_that_changed_are_missed_by_every_day_and_those_of_another_recipe_by_none(env):
    prepared(env, FIRST, 1, 5)
    prepared(env, SECOND, 2, 6, read=1)
    prepared(env, FIRST, 3, 4, digest="other items", read=2)
    prepared(env, THIRD, 4, 9, config="other rules", read=3)
    assert unchecked.unchecked_days(env, RECIPE) == {SECOND: {FIRST: 4}}


def test_results_from_before_the_digest_was_kept_stand_for_themselves(env):
    prepared(env, FIRST, 1, 5, digest=None)
    prepared(env, SECOND, 2, 6, digest=None, read=1)
    assert unchecked.unchecked_days(env, RECIPE) == {FIRST: {SECOND: 6}}
    prepared(env, FIRST, 3, 5, digest=None, read=2)
    assert unchecked.unchecked_days(env, RECIPE) == {SECOND: {FIRST: 5}}


def test_the_command_lists_them_beside_the_stale_days(env, capsys):
    prepared(env, FIRST, 1, 5)
    prepared(env, SECOND, 2, 6, read=1)
    assert cli.main(["stale", "--recipe", "smoke", "--home", str(env.home)]) == 0
    shown = capsys.readouterr().out
    assert "No day of recipe smoke is stale." in shown and f"{FIRST}  was not compared with 6 benchmark items of {SECOND}, made after it" in shown
    assert cli.main(["stale", "--recipe", "smoke", "--json", "--home", str(env.home)]) == 0
    assert json.loads(capsys.readouterr().out)["unchecked"] == {FIRST: {SECOND: 6}}
