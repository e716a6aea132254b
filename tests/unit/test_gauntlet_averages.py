"""Baselines, rescaling and means: known values of Foundry's data, arithmetic by hand, and no quiet gaps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from gauntlet_examples import GAUNTLET, needs_gauntlet

from models.gauntlet import averages, tasks
from models.gauntlet.averages import Score, best_constant, by_category, chance, mean, overall, score_benchmark
from models.gauntlet.scoring import Response
from models.gauntlet.tasks import Item, Task

# Accuracy of one fixed answer, as published in the notes on Foundry's data, and the points it is worth against Mosaic's baseline.
CONSTANTS = {
    "siqa": 0.516, "commonsense_qa": 0.403, "boolq": 0.622, "bigbench_strategy_qa": 0.533, "agi_eval_lsat_ar": 0.300, "agi_eval_lsat_rc": 0.276,
    "agi_eval_lsat_lr": 0.278, "agi_eval_sat_en": 0.301,
}  # fmt: skip


@needs_gauntlet
def test_the_best_constant_answers_of_foundrys_data():
    yamls = GAUNTLET / "yamls"
    loaded = tasks.load_foundry(yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only="v0.3-local")
    found = {b.task.label: best_constant(b.task, b.items) for b in loaded}
    assert {name: round(found[name], 3) for name in CONSTANTS} == CONSTANTS
    for benchmark in loaded:
        assert chance(benchmark.task, benchmark.items) == pytest.approx(benchmark.task.random_baseline, abs=0.005), benchmark.task.label
    assert averages.rescaled(found["commonsense_qa"], 0.25, "csqa") == pytest.approx(0.204, abs=5e-4)
    assert averages.rescaled(found["boolq"], 0.5, "boolq") == pytest.approx(0.243, abs=5e-4)


def letters(golds: str) -> tuple[Task, list[Item]]:
    task = Task(label="letters", kind="multiple_choice", category="c", random_baseline=0.25)
    return task, [Item(str(i), {"query": "q", "choices": list("ABCD"), "gold": "ABCD".index(g)}) for i, g in enumerate(golds)]


def responses(rights: list[bool], subset: list[str] | None = None) -> list[Response]:
    subset = subset or [""] * len(rights)
    return [
        Response(str(i), "multiple_choice", group, "q", "h", 1, ("A",), (-1.0,), (-1.0,), "A", 0, 0 if right else 1, right, False)
        for i, (right, group) in enumerate(zip(rights, subset, strict=True))
    ]


def test_chance_and_constant_by_hand():
    task, items = letters("CCCABD")
    assert chance(task, items) == 0.25 and best_constant(task, items) == 0.5
    mixed = [*items, Item("6", {"query": "q", "choices": ["A", "B"], "gold": 0})]
    assert chance(task, mixed) == pytest.approx((6 * 0.25 + 0.5) / 7)
    lm = Task(label="lm", kind="language_modeling", category="c")
    rows = [Item(str(i), {"context": "x", "continuation": c}) for i, c in enumerate(("a", " a ", "b"))]
    assert chance(lm, rows) == 0.0 and best_constant(lm, rows) == pytest.approx(2 / 3)


def test_a_generated_constant_earns_every_answer_that_it_starts_with():
    task = Task(label="g", kind="generation_task_with_answers", category="c", do_normalization=False)
    rows = [Item(str(i), {"context": "x", "answer": a}) for i, a in enumerate(("1", "18", "18", "7"))]
    assert best_constant(task, rows) == 0.75  # "18" is right for 1, 18 and 18


def test_fixed_subtracts_the_higher_baseline_and_exact_subtracts_mosaics():
    task, items = letters("CCCABD")
    rights = responses([True, True, True, True, False, False])
    fixed, exact = score_benchmark(replace(task, mode="fixed"), items, rights), score_benchmark(task, items, rights)
    assert fixed.accuracy == pytest.approx(4 / 6) and fixed.score == pytest.approx((4 / 6 - 0.5) / 0.5)
    assert exact.score == pytest.approx((4 / 6 - 0.25) / 0.75)
    assert fixed.stderr == pytest.approx(math.sqrt((4 / 6) * (2 / 6) / 6))


def test_a_categorised_benchmark_is_the_unweighted_mean_of_its_categories():
    task = Task(label="j", kind="language_modeling", category="c", has_categories=True)
    items = [Item(str(i), {"context": "x", "continuation": str(i), "category": "a" if i < 9 else "b"}) for i in range(10)]
    got = score_benchmark(task, items, responses([True] * 9 + [False], ["a"] * 9 + ["b"]))
    assert got.accuracy == 0.5  # not 0.9
    half = score_benchmark(task, items, responses([True] * 6 + [False] * 3 + [True], ["a"] * 9 + ["b"]))
    assert half.stderr == pytest.approx(math.sqrt((6 / 9) * (3 / 9) / 9) / 2)


def test_contaminated_items_are_left_out_of_the_clean_accuracy():
    task, items = letters("ABCD")
    got = score_benchmark(task, items, responses([True, True, False, False]), contaminated={"0", "3"})
    assert (got.accuracy, got.accuracy_clean, got.n_contaminated) == (0.5, 0.5, 2)
    got = score_benchmark(task, items, responses([True, True, False, False]), contaminated={"0", "1"})
    assert got.accuracy_clean == 0.0
    assert score_benchmark(task, items, responses([True] * 4), contaminated={"0", "1", "2", "3"}).accuracy_clean is None


def test_a_missing_or_unasked_response_is_an_error():
    task, items = letters("ABCD")
    with pytest.raises(ValueError, match=r"letters: 4 items, 3 responses; without a partner: 3"):
        score_benchmark(task, items, responses([True] * 3))
    with pytest.raises(ValueError, match="letters: 4 items, 5 responses"):
        score_benchmark(task, items, responses([True] * 5))


def test_a_benchmark_with_one_answer_for_everything_cannot_be_scored():
    task, items = letters("CCCC")
    with pytest.raises(ValueError, match=r"letters: a baseline of 1\.0 leaves nothing to measure"):
        score_benchmark(replace(task, mode="fixed"), items, responses([True] * 4))


def a_score(benchmark: str, category: str, accuracy: float = 0.5) -> Score:
    return Score(benchmark, category, 0, 100, "m", accuracy, 0.05, 0.25, 0.3, (accuracy - 0.3) / 0.7, accuracy, 0)


def test_the_average_is_the_mean_of_category_means():
    scores = [a_score("a", "x", 0.4), a_score("b", "x", 0.6), a_score("c", "y", 0.9)]
    assert [s.accuracy for s in by_category(scores)] == [pytest.approx(0.5), 0.9]
    total = overall(scores, expected=["a", "b", "c"])
    assert total.accuracy == pytest.approx(0.7) and (total.benchmark, total.category, total.n) == ("**", "average", 300)
    assert total.stderr == pytest.approx(math.hypot(0.05 / math.sqrt(2), 0.05) / 2)


def test_a_missing_benchmark_or_a_number_that_is_none_is_an_error_that_names_it():
    scores = [a_score("a", "x"), a_score("c", "y")]
    with pytest.raises(ValueError, match="No score for b"):
        overall(scores, expected=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"c \(y\) has a score that is not a number"):
        overall([scores[0], replace(scores[1], score=math.nan)], expected=["a", "c"])
    with pytest.raises(ValueError, match="Nothing to average"):
        mean([], benchmark="*", category="z")
