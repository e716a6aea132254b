"""Stored responses by every name of a model, and the paired promotion gate on them: real tables and recorded results, nothing trained."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace

import numpy as np
import pyarrow.dataset as ds
import pytest
from builds import response

from expectations.gates import SIGNIFICANCE
from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.services import delta, responses, results
from jobs.stages import register

SHA = {1: "aaaaaa1111111111", 2: "aaaaaa2222222222"}


def record(env, stage, key, inputs, outputs):
    results.record(env, StageResult(stage, key, "tiny", None, inputs, outputs, {}, 0.0, 0.0, finished_at="2026-11-01T00:00:00Z"))


def build(env, number, right):
    """One evaluated and registered model whose answers are ``right``."""
    key = f"evaluate{number}"
    delta.append(env, "responses", [response(key, i, bool(x)) for i, x in enumerate(right)])
    score = {"run_key": key, "model": SHA[number], "benchmark": "**", "category": "average", "shots": 0, "n": len(right), "metric": "mean", "accuracy": 0.5,
             "stderr": 0.1, "chance": 0.5, "best_constant": 0.5, "score": 0.0, "n_contaminated": 0}  # fmt: skip
    delta.append(env, "scores", [score])
    record(env, "evaluate", key, {}, {table: str(delta.latest(env, table)) for table in ("responses", "scores")})
    record(env, "register", f"register{number}", {"scores": str(delta.latest(env, "scores"))}, {})
    when = dt.datetime(2026, 11, number, tzinfo=dt.UTC)
    row = {"run_key": f"register{number}", "model_name": "moeline", "model_version": str(number), "aliases": [], "promoted": number == 1, "gates": "[]",
           "moved_by": "gates", "lineage": "{}", "registered_at": when}  # fmt: skip
    delta.append(env, "registrations", [row])


@pytest.fixture
def two(env):
    right = np.random.default_rng(0).random(400) < 0.6
    build(env, 1, right)
    build(env, 2, right & (np.arange(400) % 8 != 0))
    return env


def test_a_model_is_found_by_version_alias_and_checkpoint(two):
    for name, key in {"v1": "evaluate1", "2": "evaluate2", "champion": "evaluate1", "aaaaaa2": "evaluate2", SHA[1]: "evaluate1"}.items():
        found = responses.find(two, name).rows
        expected = delta.dataset(two, TableVersion("responses", delta.latest(two, "responses").version), where_in=[key]).to_table()
        assert found["correct"].to_pylist() == expected["correct"].to_pylist() and found.num_rows == 400, name
    with pytest.raises(MoelineError, match="2 evaluated checkpoints"):
        responses.find(two, "aaaaaa")
    with pytest.raises(MoelineError, match="there are v1, v2"):
        responses.find(two, "v9")


def judged(env, rows, champion_key="register1"):
    champion = SimpleNamespace(tags={"run_key": champion_key})
    return register._paired(ds.dataset(_table(rows)), champion, SimpleNamespace(env=env))


def _table(rows):
    import pyarrow as pa

    from expectations.tables import TABLES

    return pa.Table.from_pylist(rows, schema=delta.arrow_schema(TABLES["responses"]))


def test_the_gate_judges_a_candidate_on_the_champions_own_items(two):
    right = responses.find(two, "v1").rows["correct"].to_pylist()
    same, why = judged(two, [response("x", i, r) for i, r in enumerate(right)])
    assert why == "" and [x.name for x in same] == ["c0", "c1", "average"] and all(x.p_adjusted >= SIGNIFICANCE for x in same)
    worse, _ = judged(two, [response("x", i, r and i % 8 != 0) for i, r in enumerate(right)])
    assert min(x.p_adjusted for x in worse) < SIGNIFICANCE and next(x for x in worse if x.name == "c0").difference < 0


def test_the_gate_says_why_it_cannot_pair(two):
    right = responses.find(two, "v1").rows["correct"].to_pylist()
    found, why = judged(two, [response("x", i, r) for i, r in enumerate(right[:-3])])
    assert found == [] and why == "the models did not answer the same items (397 in common, 3 not, the first in t1)"
    found, why = judged(two, [response("x", i, r, prompt="y") for i, r in enumerate(right)])
    assert found == [] and "400 not" in why
    found, why = judged(two, [response("x", i, r) for i, r in enumerate(right)], champion_key="gone")
    assert found == [] and why.startswith("the champion's answers are not stored here")
    assert register._paired(ds.dataset(_table([])), None, SimpleNamespace(env=two)) == ([], "")
