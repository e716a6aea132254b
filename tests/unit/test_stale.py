"""Days that must be done again: what they dropped is kept nowhere any more, or the recipe's rules changed."""

from __future__ import annotations

import dataclasses

import pytest
from prepared_days import RECIPE, write

from jobs import cli, stale
from jobs.services import results

FIRST, SECOND, THIRD = "2026-11-01", "2026-11-02", "2026-11-03"


def document(doc_id: str) -> dict:
    return {"doc_id": doc_id, "source": "web", "uri": "u", "licence": None, "text": "t", "n_bytes": 1, "scores": "{}"}


def copy(doc_id: str, kept: str, day: str) -> dict:
    return {"doc_id": doc_id, "kept_doc_id": kept, "kept_interval": day, "jaccard": 1.0, "cluster_size": 2, "scope": "exact_other_day"}


def deduplicated(env, day: str, seconds: int, kept: list[str], copies: list[dict]) -> None:
    write(env, "deduplicate", day, seconds, unique_documents=[document(d) for d in kept], duplicates=copies, fingerprints=[])


@pytest.fixture
def three_days(env):
    """The second day dropped b and c for the first day's B and C; the third dropped d for the first day's C, and e for the second's f."""
    deduplicated(env, FIRST, 1, ["A", "B", "C"], [])
    deduplicated(env, SECOND, 2, ["f"], [copy("b", "B", FIRST), copy("c", "C", FIRST)])
    deduplicated(env, THIRD, 3, [], [copy("d", "C", FIRST), copy("e", "f", SECOND)])
    return env


def test_days_nothing_changed_after_are_not_stale(three_days):
    assert stale.stale_days(three_days, RECIPE) == []
    deduplicated(three_days, FIRST, 4, ["A", "B", "C", "new"], [])  # done again, and it keeps what it kept
    assert stale.stale_days(three_days, RECIPE) == []


def test_exactly_the_days_that_relied_on_what_is_gone_are_stale_until_done_again(three_days, capsys):
    deduplicated(three_days, FIRST, 4, ["A", "B"], [])
    assert stale.stale_days(three_days, RECIPE) == [stale.StaleDay(SECOND, {FIRST: 1}), stale.StaleDay(THIRD, {FIRST: 1})]
    assert cli.main(["stale", "--recipe", "smoke", "--home", str(three_days.home)]) == 0
    shown = capsys.readouterr().out
    assert f"{SECOND}  1 documents were dropped or shortened for copies that {FIRST} no longer keeps" in shown and "backfill --stale --recipe smoke" in shown
    deduplicated(three_days, SECOND, 5, ["f", "c"], [copy("b", "B", FIRST)])
    deduplicated(three_days, THIRD, 6, [], [copy("d", "c", SECOND), copy("e", "f", SECOND)])
    assert stale.stale_days(three_days, RECIPE) == []


def test_a_recorded_result_is_not_taken_where_it_no_longer_holds(three_days):
    found = {day: results.newest(three_days, "deduplicate", interval=day) for day in (FIRST, SECOND, THIRD)}
    deduplicated(three_days, SECOND, 4, [], [copy("f", "A", FIRST)])
    assert [day for day, result in found.items() if stale.must_be_done_again(three_days, "deduplicate", result)] == [THIRD]
    assert not stale.must_be_done_again(three_days, "clean", found[THIRD])


def test_a_day_whose_passages_another_day_no_longer_holds_is_stale(env):
    def band(doc_id: str, *hashes: int) -> list[dict]:
        return [{"band": -2, "hash": h, "doc_id": doc_id} for h in hashes] + [{"band": 3, "hash": 7, "doc_id": doc_id}]

    def lost(doc_id: str, start: int, value: int, kept: str) -> dict:
        return {"doc_id": doc_id, "start": start, "characters": 5, "hash": value, "kept_interval": FIRST, "kept_doc_id": kept}

    def day(interval: str, seconds: int, kept: list[str], prints: list[dict], passages: list[dict]) -> None:
        tables = {"unique_documents": [document(d) for d in kept], "duplicates": [], "repeated_passages": passages, "fingerprints": prints}
        write(env, "deduplicate", interval, seconds, **tables)

    day(FIRST, 1, ["A", "B"], [*band("A", 1, 2), *band("B", 3)], [])
    day(SECOND, 2, ["c", "d"], [], [lost("c", 0, 1, "A"), lost("c", 9, 2, "A"), lost("d", 0, 3, "B"), {**lost("d", 6, 9, "d"), "kept_interval": SECOND}])
    day(FIRST, 3, ["A", "B"], [*band("A", 2, 1), *band("B", 3)], [])
    assert stale.stale_days(env, RECIPE) == []
    day(FIRST, 4, ["A", "B"], [*band("A", 5), *band("B", 3, 1)], [])  # another document has the passage now: the rows that name A are wrong all the same
    assert stale.stale_days(env, RECIPE) == [stale.StaleDay(SECOND, {FIRST: 1})]
    assert stale.must_be_done_again(env, "deduplicate", results.newest(env, "deduplicate", interval=SECOND))
    day(FIRST, 5, ["A"], [*band("A", 7)], [])
    assert stale.stale_days(env, RECIPE) == [stale.StaleDay(SECOND, {FIRST: 2})]


def test_days_prepared_with_the_rules_a_recipe_had_before_are_stale(env):
    other = dataclasses.replace(RECIPE, clean=dataclasses.replace(RECIPE.clean, allow_unknown_licence=False))
    sequences = [{"sequence_id": 0, "split": "train", "tokens": [1], "boundaries": [0], "doc_ids": ["A"], "sources": ["s"], "n_tokens": 1, "tokenizer_id": "x"}]
    write(env, "pack", FIRST, 1, sequences=sequences, config=other.config_hash("pack"))
    write(env, "pack", SECOND, 2, sequences=sequences)
    assert stale.stale_days(env, RECIPE) == [stale.StaleDay(FIRST, other_rules=True)]
    assert "other rules" in stale.stale_days(env, RECIPE)[0].why()
    write(env, "pack", FIRST, 3, sequences=sequences)
    assert stale.stale_days(env, RECIPE) == []


@pytest.mark.parametrize("days", [[], ["--from", "2026-11-01"], ["--stale", "--to", "2026-11-01"]])
def test_a_backfill_without_its_days_is_refused(days, env, capsys):
    assert cli.main(["backfill", *days, "--home", str(env.home)]) == 1
    assert "--from DAY --to DAY, or --stale" in capsys.readouterr().err
