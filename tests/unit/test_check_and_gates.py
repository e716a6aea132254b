import math
from dataclasses import replace

import pandas as pd
import pytest

from expectations import check, gates
from expectations.tables import TABLES, Column, Rule, Table
from models.gauntlet.paired import Loss

GOOD = pd.DataFrame({"doc_id": ["a" * 32, "b" * 32], "source": ["s"] * 2, "uri": ["u"] * 2, "text": ["x"] * 2, "n_bytes": [1, 2], "landed_file": ["f"] * 2})


def broken(frame):
    return sorted(r.rule for r in check.evaluate(TABLES["documents"], frame, engine="pandas") if not r.passed)


def test_good_rows_pass_every_rule():
    assert broken(GOOD) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"doc_id": ["a" * 32] * 2}, "ExpectColumnValuesToBeUnique(doc_id)"),
        ({"doc_id": ["a", "b" * 32]}, "ExpectColumnValueLengthsToEqual(doc_id)"),
        ({"uri": ["u", None]}, "ExpectColumnValuesToNotBeNull(uri)"),
        ({"n_bytes": [0, 5]}, "ExpectColumnValuesToBeBetween(n_bytes)"),
    ],
)
def test_each_broken_rule_is_named_and_no_other(change, rule):
    assert broken(GOOD.assign(**change)) == [rule]


def test_failed_rows_are_counted():
    found = {r.rule: r for r in check.evaluate(TABLES["documents"], GOOD.assign(n_bytes=[0, -3]), engine="pandas")}
    assert found["ExpectColumnValuesToBeBetween(n_bytes)"].failed_rows == 2


def test_every_table_can_be_checked_empty():
    for table in TABLES.values():
        if table.partition:
            results = check.evaluate(table, pd.DataFrame({c: [] for c in check.columns_needed(table)}), engine="pandas")
            assert len(results) == len(table.all_rules)


def test_a_rule_that_cannot_be_evaluated_fails():
    table = Table("t", "", (), (Column("x", "int64", ""),), "interval", (Rule("ExpectColumnValuesToBeBetween", {"column": "missing", "min_value": 1}),))
    found = {r.rule: r.passed for r in check.evaluate(table, pd.DataFrame({"x": [1]}), engine="pandas")}
    assert found["ExpectColumnValuesToBeBetween(missing)"] is False


def test_unknown_expectation_is_an_error():
    table = Table("t", "", (), (), "interval", (Rule("ExpectMiracles", {}),))
    with pytest.raises(ValueError, match="ExpectMiracles"):
        check.evaluate(table, pd.DataFrame({"x": [1]}), engine="pandas")


TASK = {"accuracy": 0.4, "stderr": 0.02, "chance": 0.25, "best_constant": 0.27}
MODEL = gates.Candidate(4.0, 7.0, 0.4, 0.01, {"a": TASK, "b": TASK, "c": {**TASK, "accuracy": 0.25}}, 0.1, 0.25)


def failed(candidate, champion=None):
    return [g.name for g in gates.evaluate(candidate, champion) if not g.passed]


def test_a_good_model_passes():
    assert failed(MODEL) == []
    assert failed(MODEL, MODEL) == []


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"held_out_loss": 7.0}, "learned"),
        ({"held_out_loss": math.nan}, "learned"),
        ({"tasks": {"a": TASK}}, "above_baseline"),
        ({"tasks": {"a": TASK, "b": {**TASK, "best_constant": 0.37}}}, "above_baseline"),
        ({"cost_usd": 0.26}, "within_budget"),
    ],
)
def test_each_gate_refuses_alone(change, gate):
    assert failed(replace(MODEL, **change)) == [gate]


def test_a_worse_model_does_not_replace_the_champion():
    champion = replace(MODEL, accuracy=0.45)
    assert failed(MODEL, champion) == ["not_worse_than_champion"]
    assert failed(replace(MODEL, accuracy=0.43), champion) == [], "inside the noise"
    assert failed(replace(MODEL, accuracy=math.nan), champion) == ["not_worse_than_champion"]


def loss(name="average", level="average", p=0.5, difference=0.0):
    return Loss(name, level, 400, difference, p, 0.03)


EVEN = [loss("text", "category"), loss("code", "category"), loss()]


@pytest.mark.parametrize(
    ("paired", "refused"),
    [
        (EVEN, []),
        ([loss("text", "category", 0.049, -0.05), *EVEN[1:]], ["no_category_worse"]),
        ([*EVEN[:2], loss(p=0.001, difference=-0.02)], ["not_worse_than_champion"]),
        ([*EVEN[:2], loss(p=math.nan)], ["not_worse_than_champion"]),
        ([*EVEN[:2], loss(difference=math.nan)], ["not_worse_than_champion"]),
        ([loss("text", "category")], ["not_worse_than_champion"]),  # no average: nothing judged is not a pass
    ],
)
def test_against_the_same_items_only_a_significant_loss_refuses(paired, refused):
    assert [g.name for g in gates.evaluate(MODEL, replace(MODEL, accuracy=0.9), paired) if not g.passed] == refused


def test_the_sentence_says_what_was_compared_and_how():
    by_name = {g.name: g for g in gates.evaluate(MODEL, MODEL, [loss("text", "category", 0.01, -0.051), *EVEN[1:]])}
    assert "text -5.10 points (p 0.010, a loss of 3.00 would be seen with 80 % power)" in by_name["no_category_worse"].sentence
    assert "800 same items" in by_name["no_category_worse"].sentence and by_name["no_category_worse"].observed == 0.01
    unpaired = {g.name: g for g in gates.evaluate(MODEL, MODEL, [], "the champion's answers are not stored here")}
    assert unpaired["not_worse_than_champion"].sentence.endswith("unpaired, because the champion's answers are not stored here")
    assert "no_category_worse" not in unpaired
