"""Averages are Foundry's: its YAML files as they are, its weights by hand, its published means recomputed; nothing goes missing quietly."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from gauntlet_examples import GAUNTLET, needs_gauntlet

from models.gauntlet import averages, tasks
from models.gauntlet.averages import Score
from models.gauntlet.gauntlet import gauntlet_averages, read_gauntlet

YAMLS = GAUNTLET / "yamls"
CATEGORIES = ("world_knowledge", "commonsense_reasoning", "language_understanding", "symbolic_problem_solving", "reading_comprehension")
# Category means and their core average as MosaicML published them (llm-foundry pull requests 936, 824, 674), in the order of CATEGORIES.
PUBLISHED = {
    "MPT-7B v0.3": (0.343081, (0.421662, 0.256372, 0.634086, 0.155426, 0.247861)),
    "MPT-7B v0.3 draft": (0.333385, (0.421762, 0.254120, 0.632203, 0.105898, 0.252940)),
    "Llama-2-7B v0.3 draft": (0.407258, (0.509944, 0.351611, 0.655620, 0.157127, 0.361987)),
    "MPT-7B-instruct v0.1": (0.29908, (0.409036, 0.311075, 0.371509, 0.139737, 0.264042)),
}


def written(tmp_path, **gauntlet):
    """A gauntlet YAML with two categories, changed by ``gauntlet``."""
    content = {
        "categories": [
            {"name": "x", "benchmarks": [{"name": "a", "num_fewshot": 3, "random_baseline": 0.25}, {"name": "b", "num_fewshot": 0, "random_baseline": 0}]},
            {"name": "y", "benchmarks": [{"name": "c", "num_fewshot": 5, "random_baseline": 0.5}]},
        ],
        **gauntlet,
    }
    file = tmp_path / "eval_gauntlet.yaml"
    file.write_text(json.dumps({"eval_gauntlet": content}))
    return file


def a_score(benchmark: str, shots: int, accuracy: float, n: int = 100, mode: str = "exact") -> Score:
    return Score(benchmark, "c", shots, n, "m", accuracy, 0.01, 0.25, 0.4, accuracy, accuracy, 0, mode)


THREE = [a_score("a", 3, 0.4, n=8), a_score("b", 0, 0.7, n=1024), a_score("c", 5, 0.9, n=1)]


@needs_gauntlet
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_core_averages_are_the_means_of_their_categories(model):
    """Accuracies that give every benchmark of a category the category's published score."""
    core, means = PUBLISHED[model]
    gauntlet = read_gauntlet(YAMLS / "eval_gauntlet_v0.3.yaml")
    published = dict(zip(CATEGORIES, means, strict=True))
    scores = [
        a_score(b.name, b.shots, b.random_baseline + published[category] * (1 - b.random_baseline))
        for category, members in gauntlet.categories.items()
        for b in members
    ]
    found = gauntlet_averages(gauntlet, scores)
    assert list(found) == [*CATEGORIES, "core_average"]
    assert {c: round(found[c], 6) for c in CATEGORIES} == published
    assert found["core_average"] == pytest.approx(core, abs=1.1e-6)


@needs_gauntlet
def test_every_gauntlet_and_task_yaml_reads_as_it_is():
    read = {file.name: read_gauntlet(file) for file in sorted(YAMLS.glob("**/eval_gauntlet*.yaml"))}
    assert {name: sum(map(len, g.categories.values())) for name, g in read.items()} == {"eval_gauntlet_v0.2.yaml": 33, "eval_gauntlet_v0.3.yaml": 31}
    for gauntlet in read.values():
        assert (gauntlet.weighting, gauntlet.subtract_random_baseline, gauntlet.rescale_accuracy) == ("EQUAL", True, True)
        assert gauntlet.averages == {"core_average": CATEGORIES}
    counts = {c: len(members) for c, members in read["eval_gauntlet_v0.3.yaml"].categories.items()}
    assert list(counts.values()) == [6, 7, 4, 8, 6] and list(counts) == list(CATEGORIES)
    sizes = {file.name: len(tasks.declared(file, GAUNTLET / "local_data")) for file in sorted(YAMLS.glob("**/tasks*.yaml"))}
    assert sizes["tasks_v0.3.yaml"] == 34 and sizes["tasks_light.yaml"] == 15 and sizes["tasks_v0.2.yaml"] > 30
    assert len(tasks.declared(YAMLS / "tasks_v0.2.yaml", GAUNTLET / "local_data", YAMLS / "eval_gauntlet_v0.2.yaml", mode="fixed")) == 33


@pytest.mark.parametrize(("weighting", "x"), [("EQUAL", (1, 1)), ("SAMPLE_SZ", (8, 1024)), ("LOG_SAMPLE_SZ", (3, 10))])
def test_weights_by_hand(tmp_path, weighting, x):
    found = gauntlet_averages(read_gauntlet(written(tmp_path, weighting=weighting)), THREE)
    a, b = (0.4 - 0.25) / 0.75, 0.7
    assert found["x"] == pytest.approx((a * x[0] + b * x[1]) / sum(x)) and found["y"] == pytest.approx(0.8)
    assert found["default_average"] == pytest.approx((found["x"] + found["y"]) / 2)
    assert list(found) == ["x", "y", "default_average"]


def test_subtracting_and_rescaling_are_switches(tmp_path):
    subtracted = gauntlet_averages(read_gauntlet(written(tmp_path, rescale_accuracy=False)), THREE)
    assert subtracted["x"] == pytest.approx((0.15 + 0.7) / 2) and subtracted["y"] == pytest.approx(0.4)
    plain = gauntlet_averages(read_gauntlet(written(tmp_path, rescale_accuracy=False, subtract_random_baseline=False)), THREE)
    assert plain["x"] == pytest.approx(0.55) and plain["y"] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="rescale_accuracy without subtract_random_baseline"):
        read_gauntlet(written(tmp_path, subtract_random_baseline=False))


def test_fixed_subtracts_the_higher_measured_baseline_and_modes_never_mix(tmp_path):
    gauntlet = read_gauntlet(written(tmp_path))
    fixed = gauntlet_averages(gauntlet, [replace(s, mode="fixed") for s in THREE])
    assert fixed["y"] == pytest.approx((0.9 - 0.4) / 0.6)
    with pytest.raises(ValueError, match="modes exact and fixed"):
        gauntlet_averages(gauntlet, [*THREE[:2], replace(THREE[2], mode="fixed")])
    with pytest.raises(ValueError, match="mix scores of modes"):
        averages.mean([THREE[0], replace(THREE[1], mode="fixed")], benchmark="*", category="x")


def test_what_is_missing_or_no_number_is_an_error_that_names_it(tmp_path):
    gauntlet = read_gauntlet(written(tmp_path))
    with pytest.raises(ValueError, match="No score for b/0-shot"):
        gauntlet_averages(gauntlet, [THREE[0], THREE[2]])
    with pytest.raises(ValueError, match="No score for a/3-shot"):
        gauntlet_averages(gauntlet, [a_score("a", 5, 0.4), *THREE[1:]])  # another shot count is another benchmark
    with pytest.raises(ValueError, match="accuracy of c is not a number"):
        gauntlet_averages(gauntlet, [*THREE[:2], a_score("c", 5, math.nan)])


def test_a_partial_gauntlet_has_other_names_all_the_way_up(tmp_path):
    named = {"core_average": ["x", "y"], "only_y": ["y"]}
    gauntlet = read_gauntlet(written(tmp_path, averages=named))
    found = gauntlet_averages(gauntlet, [THREE[0], THREE[2]], partial=True)
    assert list(found) == ["partial/x", "y", "partial/core_average", "only_y"]
    assert list(gauntlet_averages(gauntlet, [THREE[2]], partial=True)) == ["y", "partial/core_average", "only_y"]
    assert list(gauntlet_averages(gauntlet, THREE, partial=True)) == ["x", "y", "core_average", "only_y"]
    sampled = gauntlet_averages(gauntlet, THREE, partial=True, sampled=True)
    assert list(sampled) == ["partial/x", "partial/y", "partial/core_average", "partial/only_y"]
    with pytest.raises(ValueError, match="None of the gauntlet"):
        gauntlet_averages(gauntlet, [], partial=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weighting": "HEAVY"}, "weighting is 'HEAVY'"),
        ({"weighting": ["EQUAL"]}, "weighting is"),
        ({"subtract_random_baseline": "yes"}, "must be true or false"),
        ({"categories": []}, "needs categories"),
        ({"categories": {"x": 1}}, "needs categories"),
        ({"categories": [{"name": "x", "benchmarks": []}]}, "not empty"),
        ({"categories": [{"name": "x", "benchmarks": [{"name": "a", "num_fewshot": 1.5, "random_baseline": 0}]}]}, "num_fewshot of a is '1.5'"),
        ({"categories": [{"name": "x", "benchmarks": [{"name": "a", "num_fewshot": True, "random_baseline": 0}]}]}, "num_fewshot of a"),
        ({"categories": [{"name": "x", "benchmarks": [{"name": "a", "num_fewshot": 0}]}]}, "random_baseline of a is 'None'"),
        ({"categories": [{"name": "x", "benchmarks": [{"name": "a", "num_fewshot": 0, "random_baseline": 1}]}]}, "random_baseline of a"),
        ({"categories": [{"name": "x", "benchmarks": [{"name": "a", "num_fewshot": 0, "random_baseline": 0}] * 2}]}, "twice: a/0-shot"),
        ({"averages": {"x": ["y"]}}, "x is an average and a category"),
        ({"averages": {"all": ["x", "z"]}}, "not defined: z"),
        ({"averages": {"all": []}}, "not empty"),
        ({"averages": ["x"]}, "averages must give"),
        ({"avrages": {}}, "unknown settings .*avrages"),
    ],
)
def test_a_broken_gauntlet_is_refused_by_name(tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        read_gauntlet(written(tmp_path, **change))


@pytest.mark.parametrize("baseline", [".nan", ".inf", "-0.1", "'0.25'"])
def test_a_baseline_that_is_no_share_is_refused(tmp_path, baseline):
    file = tmp_path / "g.yaml"
    file.write_text(f"categories:\n- name: x\n  benchmarks:\n  - {{name: a, num_fewshot: 0, random_baseline: {baseline}}}\n")
    with pytest.raises(ValueError, match="random_baseline of a"):
        read_gauntlet(file)
