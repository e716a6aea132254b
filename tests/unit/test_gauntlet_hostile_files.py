"""Task files and data written to harm: each is refused by name, or read as what it says and nothing more."""

from __future__ import annotations

import json

import pytest

from models.gauntlet import tasks
from models.gauntlet.gauntlet import read_gauntlet

CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 0}
KINDS = {
    "multiple_choice": CHOICE,
    "language_modeling": {"context": "c", "continuation": "d"},
    "schema": {"context_options": ["a", "b"], "continuation": "c", "gold": 1},
    "generation_task_with_answers": {"context": "c", "answer": "a", "aliases": ["b"], "chain_of_thought": "t"},
}


def load(tmp_path, *lines: str | bytes, kind: str = "multiple_choice", **settings):
    raw = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (tmp_path / "quiz.jsonl").write_bytes(raw)
    task = {"label": "quiz", "dataset_uri": "quiz.jsonl", "num_fewshot": [0], "icl_task_type": kind, **settings}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    return tasks.load_foundry(tmp_path / "tasks.yaml", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "icl_tasks: !!python/object/apply:os.system ['touch harmed']",
        "icl_tasks: !!python/name:os.system",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nicl_tasks: *c",
        "icl_tasks: " + "[" * 20_000,
        "icl_tasks: " + "[" * 2_000 + "]" * 2_000,
        "icl_tasks: [" + "x" * (1 << 20) + "]",
        "- icl_tasks",
        "",
        "icl_tasks: {label: quiz}",
        "icl_tasks: 7",
        "icl_tasks: [7]",
        "icl_tasks: [[]]",
        "{",
        "\x00",
    ],
)
def test_a_yaml_that_is_no_task_list_is_refused(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"tasks\.yaml"):
        tasks.load_foundry(tmp_path / "tasks.yaml", tmp_path)
    with pytest.raises(ValueError, match=r"tasks\.yaml"):
        read_gauntlet(tmp_path / "tasks.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["tasks.yaml"]


def test_a_yaml_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "tasks.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"Cannot read .*tasks\.yaml"):
        tasks.load_foundry(tmp_path / "tasks.yaml", tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"label": ["a"]}, "label is"),
        ({"label": ""}, "label is"),
        ({"num_fewshot": ["3"]}, "num_fewshot of quiz is '3'"),
        ({"num_fewshot": [True]}, "num_fewshot of quiz"),
        ({"num_fewshot": [-1]}, "must be 0 or more"),
        ({"num_fewshot": [0, 0]}, "defines tasks twice: quiz/0-shot"),
        ({"continuation_delimiter": 7}, "continuation_delimiter is '7'; it must be str"),
        ({"has_categories": "yes"}, "has_categories is 'yes'; it must be bool"),
        ({"fewshot_random_seed": "1234"}, "fewshot_seed is"),
        ({"early_stopping_criteria": ["("]}, "not usable"),
        ({"early_stopping_criteria": [7]}, "not usable"),
        ({"early_stopping_criteria": {"a": 1}}, "early_stopping is"),
        ({"icl_task_type": ["schema"]}, "kind is"),
        ({"mode": "fixed"}, "unknown settings"),
        ({"random_baseline": 0.9}, "unknown settings"),
        ({"__class__": "x"}, "unknown settings"),
        ({"dataset_uri": "../../../etc/passwd"}, "outside"),
        ({"dataset_uri": "/etc/passwd"}, "outside"),
        ({"dataset_uri": "eval/local_data/../../secret.jsonl"}, "outside"),
        ({"dataset_uri": ""}, "dataset_uri is ''"),
        ({"dataset_uri": "a\x00b"}, "dataset_uri is"),
        ({"dataset_uri": ["quiz.jsonl"]}, "dataset_uri is"),
        ({"dataset_uri": "."}, "Missing benchmark data"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        load(tmp_path, json.dumps(CHOICE), **settings)


def test_the_same_label_twice_is_refused(tmp_path):
    task = {"label": "quiz", "dataset_uri": "quiz.jsonl", "num_fewshot": [0], "icl_task_type": "multiple_choice"}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"icl_tasks": [task, {**task, "dataset_uri": "other.jsonl"}]}))
    with pytest.raises(ValueError, match=r"defines tasks twice: quiz \(0-shot\)"):
        tasks.declared(tmp_path / "tasks.yaml", tmp_path)


BAD = [None, 7, 1.5, True, {"a": 1}, [["a"]], [7], float("nan")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_another_type_is_refused_with_its_line(tmp_path, kind):
    good = KINDS[kind]
    assert load(tmp_path, json.dumps(good), kind=kind)[0].items[0].row == good
    for name in good:
        for bad in BAD:
            with pytest.raises(ValueError, match=r"Task quiz.*line 2|line 2.*Task quiz"):
                load(tmp_path, json.dumps(good), json.dumps({**good, name: bad}), kind=kind)
        if name not in ("aliases", "chain_of_thought"):
            with pytest.raises(ValueError, match=f"line 2 .*has no {name}"):
                load(tmp_path, json.dumps(good), json.dumps({k: v for k, v in good.items() if k != name}), kind=kind)


@pytest.mark.parametrize(
    "line",
    [
        "{", "NaN", '{"query": NaN}', "[" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, b"\xff\xfe", '{"query": "\\ud800", "choices": ["a"], "gold": 0}',
        '"text"', "null", "[]", '{"query": "q", "choices": ["a"], "gold": 1e400}', '{"query": "q", "choices": ["a"], "gold": -1}', "", "1" * 5000,
        '{"query": "q", "choices": [], "gold": 0}', '{"query": "q", "choices": ["a", ""], "gold": 0}', '{"query": "q", "choices": "ab", "gold": 0}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_item_is_refused(tmp_path, line):
    with pytest.raises(ValueError, match="Task quiz"):
        load(tmp_path, json.dumps(CHOICE), line, json.dumps(CHOICE))


def test_items_of_ten_megabytes_and_code_in_fields_are_text(tmp_path):
    injected = "'); import os; os.system('touch harmed') #{{7*7}}${x}<script>alert(1)</script>\u202e\x00`id`"
    rows = [{"query": "x" * (10 << 20), "choices": ["a", injected], "gold": 1}, {"query": injected, "choices": ["__import__('os')", "b"], "gold": 0}]
    (benchmark,) = load(tmp_path, *map(json.dumps, rows))
    assert [item.row for item in benchmark.items] == rows and not (tmp_path / "harmed").exists()
    assert tasks.gold_text(benchmark.task, benchmark.items[1].row).startswith(injected)


def test_options_that_repeat_each_other_are_named_and_kept(tmp_path):
    rows = [CHOICE, {"query": "q", "choices": ["a", "b", " a "], "gold": 1}]
    (benchmark,) = load(tmp_path, *map(json.dumps, rows))
    assert tasks.duplicate_options(benchmark) == {"1": (0, 2)} and len(benchmark.items) == 2
