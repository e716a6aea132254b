"""Days of a stage that reads what its other days kept: who may commit. A stage of its own, no Spark."""

from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from expectations.tables import TABLES
from jobs import recipes, run
from jobs.contract import CommitConflict, StageOutput
from jobs.services import delta, results

RECIPE = recipes.load("smoke")
FIRST, SECOND = "2026-11-02", "2026-11-03"


@pytest.fixture
def meanwhile(monkeypatch):
    """A stage with deduplication's name and tables; what is put in the list happens, once, while it computes."""
    happens = []

    def execute(config, inputs, tools):
        if happens:
            happens.pop()()
        day = tools.interval
        row = {"doc_id": day, "source": "s", "uri": "u", "licence": None, "text": "t", "n_bytes": 1, "scores": "{}", "band": -1, "hash": 1}
        tables = {name: pa.Table.from_pylist([row]).select([c for c in TABLES[name].column_names if c in row]) for name in ("unique_documents", "fingerprints")}
        nothing = delta.arrow_schema(TABLES["duplicates"]).empty_table().drop_columns("interval")
        return StageOutput({**tables, "duplicates": nothing}, {})

    module = SimpleNamespace(
        __name__="jobs.stages.deduplicate", ENGINE="arrow", READS={"fingerprints": "other_intervals"}, REVISION=1, run=execute, UNMOVED=("fingerprints",),
        WRITES=("unique_documents", "duplicates", "fingerprints"),
    )  # fmt: skip
    monkeypatch.setattr(run, "stage_module", lambda name: module)
    return happens


def deduplicated(env, day, recipe=RECIPE):
    return run.run_stage(env, "deduplicate", recipe, interval=day)


def test_a_day_recorded_while_another_computes_makes_that_one_start_again(env, meanwhile):
    meanwhile.append(lambda: deduplicated(env, FIRST))
    with pytest.raises(CommitConflict, match="fingerprints moved from None to fingerprints@1"):
        deduplicated(env, SECOND)
    assert {r["interval"] for r in delta.rows(env, "unique_documents")} == {FIRST}, "the one that lost has committed nothing"
    assert not deduplicated(env, SECOND).reused


def test_an_attempt_that_ended_between_its_commit_and_its_record_keeps_nobody_from_committing(env, meanwhile, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            deduplicated(env, FIRST)
    assert {r["interval"] for r in delta.rows(env, "fingerprints")} == {FIRST}, "the table has moved"
    assert not deduplicated(env, SECOND).reused
    assert not deduplicated(env, FIRST).reused


def test_another_recipe_in_the_same_tables_keeps_nobody_from_committing(env, meanwhile):
    other = replace(RECIPE, deduplicate=replace(RECIPE.deduplicate, min_jaccard=0.8))
    meanwhile.append(lambda: deduplicated(env, FIRST, other))
    assert not deduplicated(env, SECOND).reused
    assert not deduplicated(env, FIRST).reused
