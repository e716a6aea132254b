"""Foundry's task YAML and JSONL are read as they are, and nothing that is asked for goes missing quietly."""

from __future__ import annotations

import json
import shutil

import pytest
from gauntlet_examples import GAUNTLET, needs_gauntlet

from models.gauntlet import tasks

YAMLS = GAUNTLET / "yamls"


def foundry(**kwargs):
    return tasks.load_foundry(YAMLS / "tasks_v0.3.yaml", GAUNTLET / "local_data", YAMLS / "eval_gauntlet_v0.3.yaml", **kwargs)


def small_folder(tmp_path, rows, **settings):
    """A GAUNTLET_DATA folder with one task."""
    data = tmp_path / "local_data" / "reading"
    data.mkdir(parents=True)
    (data / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"label": "quiz", "dataset_uri": "eval/local_data/reading/quiz.jsonl", "num_fewshot": [0], "icl_task_type": "multiple_choice", **settings}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task]}))  # JSON is YAML
    return tmp_path


@needs_gauntlet
def test_the_26_local_benchmarks_load_with_their_published_sizes():
    loaded = foundry(only="v0.3-local")
    assert len(loaded) == 26 and {b.task.label for b in loaded} == set(tasks.V03_LOCAL)
    assert sum(len(b.items) for b in loaded) == 53_068
    sizes = {b.task.label: len(b.items) for b in loaded}
    assert (sizes["jeopardy"], sizes["bigbench_qa_wikidata"], sizes["copa"], sizes["boolq"]) == (2117, 20_321, 100, 3270)


@needs_gauntlet
def test_settings_come_from_the_yaml_and_defaults_are_foundrys():
    by_label = {b.task.label: b.task for b in foundry(only="v0.3-local")}
    svamp, siqa = by_label["svamp"], by_label["siqa"]
    assert (svamp.kind, svamp.num_fewshot, svamp.question_prelimiter, svamp.cot_delimiter) == (
        "generation_task_with_answers",
        5,
        "Question: ",
        "The answer is ",
    )
    assert (svamp.early_stopping, svamp.do_normalization, svamp.continuation_delimiter) == (("\n\n", "Question:"), False, "\n\nA:")
    assert (siqa.continuation_delimiter, siqa.example_delimiter, siqa.question_prelimiter, siqa.fewshot_seed) == (" ", "\n", "", 1234)
    assert (siqa.category, siqa.random_baseline, by_label["jeopardy"].has_categories) == ("commonsense_reasoning", 0.5, True)


@needs_gauntlet
def test_a_missing_data_file_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"Missing benchmark data: mmlu .*hellaswag.*elementary_math_qa.*squad.*coqa"):
        foundry()


@needs_gauntlet
def test_a_gauntlet_folder_loads_what_is_there_and_names_what_is_not(caplog):
    loaded = tasks.gauntlet_data(GAUNTLET)
    assert len(loaded) == 26
    missing = tasks.missing_data(GAUNTLET)
    assert set(missing) == {"mmlu", "hellaswag", "bigbench_elementary_math_qa", "squad", "coqa"}
    assert all(name in caplog.text for name in missing)


@needs_gauntlet
def test_without_a_gauntlet_every_shot_count_is_a_benchmark_of_its_own():
    found = tasks.declared(YAMLS / "tasks_v0.3.yaml", GAUNTLET / "local_data")
    labels = [task.label for task, _ in found]
    assert "arc_challenge/3-shot" in labels and "arc_challenge/25-shot" in labels and len(labels) == len(set(labels))


@needs_gauntlet
def test_a_benchmark_the_yaml_does_not_define_is_an_error():
    with pytest.raises(ValueError, match="does not define triviaqa_xl"):
        foundry(only=["triviaqa_xl"])


def test_item_texts_hold_every_string_of_an_item():
    row = {"query": "Which?", "choices": ["one", "two", "three"], "gold": 1}
    choice = tasks.Benchmark(tasks.Task(label="t", kind="multiple_choice", category="c"), (tasks.Item("0", row),))
    assert list(tasks.item_texts(choice)) == [("0", "Which? two"), ("0", "one"), ("0", "three")]
    row = {"context": "Who?", "answer": "Ada", "aliases": ["Ada", "Ada L."]}
    generated = tasks.Benchmark(tasks.Task(label="g", kind="generation_task_with_answers", category="c"), (tasks.Item("0", row),))
    assert list(tasks.item_texts(generated)) == [("0", "Who? Ada"), ("0", "Ada"), ("0", "Ada L.")]
    row = {"context_options": ["The cat", "The dog"], "continuation": "barks.", "gold": 1}
    schema = tasks.Benchmark(tasks.Task(label="s", kind="schema", category="c"), (tasks.Item("0", row),))
    assert list(tasks.item_texts(schema)) == [("0", "The dog barks."), ("0", "The cat")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "q", "choices": ["a", "b"]}, "has no gold"),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, "gold .* is 2, but there are 2 options"),
        ({"query": "q", "choices": ["a", ""], "gold": 0}, "not empty"),
        (["q"], "is list, not a JSON object"),
    ],
)
def test_a_broken_row_is_an_error_with_its_line(tmp_path, row, says):
    folder = small_folder(tmp_path, [{"query": "q", "choices": ["a", "b"], "gold": 0}, row])
    with pytest.raises(ValueError, match=f"line 2 .*{says}|{says} .*line 2|of line 2 .*"):
        tasks.gauntlet_data(folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"continuation_delimeter": " "}, "unknown settings .*continuation_delimeter"),
        ({"generation_kwargs": {"do_sample": True}}, "only tasks of kind code_evaluation are sampled"),
        ({"hf_loading_vars": {"name": "x"}}, "would change what is asked"),
        ({"icl_task_type": "essay"}, "unknown icl_task_type 'essay'"),
        ({"pass_at_k": 10, "generations_per_sample": 20}, "only tasks of kind code_evaluation are sampled"),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        tasks.gauntlet_data(small_folder(tmp_path, [{"query": "q", "choices": ["a", "b"], "gold": 0}], **settings))


def test_a_folder_without_tasks_or_without_any_data_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found neither"):
        tasks.gauntlet_data(tmp_path)
    folder = small_folder(tmp_path, [{"query": "q", "choices": ["a", "b"], "gold": 0}])
    shutil.rmtree(folder / "local_data")
    with pytest.raises(ValueError, match="none of the 1 data files"):
        tasks.gauntlet_data(folder)


def test_the_digest_follows_names_and_contents(tmp_path):
    folder = small_folder(tmp_path / "a", [{"query": "q", "choices": ["a", "b"], "gold": 0}])
    first = tasks.digest(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert tasks.digest(tmp_path / "b") == first
    (tmp_path / "b" / "tasks.yaml").rename(tmp_path / "b" / "tasks2.yaml")
    assert tasks.digest(tmp_path / "b") != first
    data = folder / "local_data" / "reading" / "quiz.jsonl"
    data.write_text(data.read_text().replace('"gold": 0', '"gold": 1'))
    assert tasks.digest(folder) != first
