"""Evaluate: a real checkpoint answers the suite; the rows fit the tables, and what is damaged or missing stops it with a reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from gauntlet_run import SUITE, TOKENIZER_ID, evaluate_inputs, examples, fits, item_rows, packed, table

from jobs.config import EvaluateConfig
from jobs.contract import MoelineError
from jobs.stages import evaluate
from models.gauntlet import tasks

CONFIG = EvaluateConfig(suite=SUITE, batch_tokens=4096)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return evaluate_inputs(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def output(prepared):
    tools, inputs = prepared
    return evaluate.run(CONFIG, inputs, tools)


def test_rows_fit_the_tables_and_every_item_has_a_response(output):
    responses = fits("responses", output.tables["responses"])
    fits("scores", output.tables["scores"])
    counts = {row["values"]: row["counts"] for row in pc.value_counts(responses["benchmark"]).to_pylist()}
    assert counts == dict.fromkeys((*SUITE.own_data_tasks, *SUITE.symbolic_tasks), 40) and output.metrics["n_items"] == 200


def test_scores_follow_from_the_responses(output):
    responses, scores = output.tables["responses"].to_pylist(), {(r["benchmark"], r["category"]): r for r in output.tables["scores"].to_pylist()}
    tasks_of = {r["benchmark"]: r["category"] for r in responses}
    for label, category in tasks_of.items():
        rights = [r["correct"] for r in responses if r["benchmark"] == label]
        row = scores[label, category]
        assert row["accuracy"] == pytest.approx(sum(rights) / 40) and row["chance"] == 0.25 and row["n"] == 40 and row["shots"] == 0
        assert row["stderr"] == pytest.approx(math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 40))
        assert row["score"] == pytest.approx((row["accuracy"] - 0.25) / 0.75)
    categories = sorted(set(tasks_of.values()))
    means = [scores["*", c]["accuracy"] for c in categories]
    assert len(categories) >= 3
    assert scores["**", "average"]["accuracy"] == pytest.approx(sum(means) / len(means)) == pytest.approx(output.metrics["accuracy"])
    assert not any(r["category"] == "core_average" for r in scores.values())


def test_a_response_holds_what_a_reviewer_needs(output, prepared):
    tools, inputs = prepared
    (final,) = [r for r in inputs["checkpoints"].to_table().to_pylist() if r["final"]]
    manifest = json.loads((tools.root / final["uri"] / "manifest.json").read_text())
    for row in output.tables["responses"].to_pylist():
        item = json.loads(row["item"])
        assert row["prediction"] == max(range(4), key=lambda i: (row["mean_logprobs"][i], -i)) and row["correct"] is (row["prediction"] == row["gold"])
        assert row["output"] == row["choices"][row["prediction"]] and len(row["sum_logprobs"]) == 4 and len(row["item"]) < 16_000
        assert row["weights_digest"] == manifest["files"]["model.safetensors"]["sha256"][:16] and len(row["prompt_hash"]) == 16
        assert (item["source"] in ("python-code", "python-docs")) is (row["benchmark"] in SUITE.own_data_tasks) and isinstance(item["contaminated"], bool)
    assert {r["model"] for r in output.tables["scores"].to_pylist()} == {final["sha256"][:16]}


def test_the_same_inputs_give_the_same_rows(output, prepared):
    tools, inputs = prepared
    again = evaluate.run(CONFIG, inputs, tools)
    assert again.tables["responses"].equals(output.tables["responses"]) and again.tables["scores"].equals(output.tables["scores"])
    assert tools.reported[-1][0] == tools.reported[-1][1]


def test_items_that_stand_in_training_are_flagged(prepared):
    tools, inputs = prepared
    rows = item_rows()
    leaked = next(r for r in rows if r["benchmark"] == "docstring" and len(r["item"]) > 500)
    text = tasks.gold_text(tasks.Task(label="docstring", kind="multiple_choice", category="c"), json.loads(leaked["item"]))
    sequences = table("sequences", packed([text + " "] * 20))
    kept = [r for r in rows if r["benchmark"] != "docstring"] + [leaked] + [r for r in rows if r["benchmark"] == "docstring" and r is not leaked][:19]
    output = evaluate.run(
        replace(CONFIG, suite=replace(SUITE, own_data_tasks=("docstring",), symbolic_tasks=("brackets",))),
        {**inputs, "sequences": ds.dataset(sequences), "benchmark_items": ds.dataset(table("benchmark_items", kept))}, tools,
    )  # fmt: skip
    flagged = [r["item_id"] for r in output.tables["responses"].to_pylist() if json.loads(r["item"])["contaminated"]]
    assert flagged == [leaked["item_id"]]
    row = next(r for r in output.tables["scores"].to_pylist() if r["benchmark"] == "docstring")
    assert (row["n"], row["n_contaminated"]) == (20, 1) and row["accuracy_clean"] is not None and output.metrics["n_contaminated"] == 1


def test_items_whose_words_are_left_in_training_are_kept_apart_by_the_rule_of_their_benchmark(prepared, output):
    tools, inputs = prepared
    rows = [r for r in item_rows() if r["benchmark"] == "docstring"]
    answers = [r for r in output.tables["responses"].to_pylist() if r["benchmark"] == "docstring"]
    by_tokens = {r["item_id"] for r in answers if json.loads(r["item"])["contaminated"]}
    by_ngram, by_share, over_days, gone = [r["item_id"] for r in answers if r["item_id"] not in by_tokens][:4]
    apart = by_tokens | {by_share, over_days}

    def listed(item_id, rule, left, acts, day="2026-11-01"):
        return {
            "interval": day, "benchmark": "docstring", "item_id": item_id, "rule": rule, "acts": acts, "n_ngrams": 10, "share": 0.9, "contaminated": True,
            "threshold": 0.7 if rule == "share" else 0.0, "documents": 1, "action": "none", "still_trains": bool(left), "left": left,
        }  # fmt: skip

    suite = replace(SUITE, own_data_tasks=("docstring",), symbolic_tasks=("brackets",))
    clean = evaluate.run(replace(CONFIG, suite=suite), {**inputs, "benchmark_items": ds.dataset(table("benchmark_items", rows))}, tools)
    found = [
        listed(by_ngram, "ngram", [3], False), listed(by_share, "share", [*range(8)], True), listed(gone, "share", [], True),
        listed(over_days, "share", [0, 1, 2, 3], True), listed(over_days, "share", [3, 4, 5, 6], True, "2026-11-02"),
    ]  # fmt: skip
    given = {**inputs, "benchmark_items": ds.dataset(table("benchmark_items", rows)), "contaminated_items": ds.dataset(table("contaminated_items", found))}
    dirty = evaluate.run(replace(CONFIG, suite=suite), given, tools)
    before, after = ({r["item_id"]: r for r in o.tables["responses"].to_pylist() if r["benchmark"] == "docstring"} for o in (clean, dirty))
    assert {i: json.loads(r["item"])["contaminated"] for i, r in after.items()} == {i: i in apart for i in before}
    assert [json.loads(after[i]["item"])["found_by"] for i in (by_ngram, by_share, over_days, gone)] == [["ngram"], ["share"], ["share"], []]
    assert dirty.metrics["contaminated_by"] == {"tokens": len(by_tokens), "ngram": 1, "share": 2}
    row = next(r for r in dirty.tables["scores"].to_pylist() if r["benchmark"] == "docstring")
    same = next(r for r in clean.tables["scores"].to_pylist() if r["benchmark"] == "docstring")
    rights = [r["correct"] for i, r in before.items() if i not in apart]
    assert (row["n_contaminated"], same["n_contaminated"]) == (len(apart), len(by_tokens)) and row["accuracy_clean"] == pytest.approx(sum(rights) / len(rights))
    assert {k: v for k, v in row.items() if k not in ("n_contaminated", "accuracy_clean")} == {
        k: v for k, v in same.items() if k not in ("n_contaminated", "accuracy_clean")
    }


def test_foundrys_tasks_run_from_a_folder_and_stay_apart_from_ours(prepared, tmp_path):
    tools, inputs = prepared
    data = tmp_path / "local_data" / "world_knowledge"
    data.mkdir(parents=True)
    rows = {
        "quiz": [{"query": f"Question {i}?", "choices": ["yes", "no"], "gold": i % 2} for i in range(60)],
        "facts": [{"context": f"The number after {i} is", "continuation": str(i + 1)} for i in range(20)],
        "who": [{"context_options": ["Ada", "Bob"], "continuation": "wrote it.", "gold": i % 2} for i in range(20)],
        "free": [{"context": f"Say {i}:", "answer": str(i), "aliases": [f"{i}.", f"number {i}"]} for i in range(8)],
        "novel": [{"context": "Once", "continuation": "upon a time " * 300} for _ in range(3)],
    }
    kinds = {"quiz": "multiple_choice", "facts": "language_modeling", "who": "schema", "free": "generation_task_with_answers", "novel": "language_modeling"}
    listed = [
        {"label": label, "dataset_uri": f"eval/local_data/world_knowledge/{label}.jsonl", "num_fewshot": [2], "icl_task_type": kind}
        for label, kind in kinds.items()
    ]
    listed.append({"label": "absent", "dataset_uri": "eval/local_data/world_knowledge/absent.jsonl", "num_fewshot": [0], "icl_task_type": "schema"})
    (tmp_path / "tasks_small.yaml").write_text(json.dumps({"icl_tasks": listed}))
    for label, content in rows.items():
        (data / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    suite = replace(SUITE, symbolic_tasks=("brackets",), own_data_tasks=("identifier",), gauntlet_digest=tasks.digest(tmp_path))
    output = evaluate.run(EvaluateConfig(suite=suite), inputs, replace(tools, gauntlet_data=str(tmp_path)))
    fits("responses", output.tables["responses"])
    scores = {(r["benchmark"], r["category"]): r for r in fits("scores", output.tables["scores"]).to_pylist()}
    assert scores["quiz", "gauntlet/world_knowledge"]["n"] == 40 and scores["free", "gauntlet/world_knowledge"]["n"] == 8  # 40 items per task
    assert ("*", "gauntlet/partial/average") in scores and ("*", "gauntlet/average") not in scores, "a task is missing, one does not fit, items are capped"
    assert ("**", "average") in scores and ("novel", "gauntlet/world_knowledge") not in scores
    assert scores["**", "average"]["n"] == 80  # ours only
    assert output.metrics["gauntlet_missing"] == ["absent"] and "sequences of 256" in output.metrics["gauntlet_skipped"]["novel"]
    (data / "quiz.jsonl").write_text("{}\n")
    with pytest.raises(MoelineError, match="has changed"):
        evaluate.run(EvaluateConfig(suite=suite), inputs, replace(tools, gauntlet_data=str(tmp_path)))
    with pytest.raises(MoelineError, match="GAUNTLET_DATA is not set"):
        evaluate.run(EvaluateConfig(suite=suite), inputs, tools)


def foundry_folder(folder: Path, sizes: dict[str, int], absent: str = "") -> Path:
    """A GAUNTLET_DATA folder of yes/no tasks with a gauntlet of two categories, weighted by size."""
    folder.mkdir()
    for label, size in sizes.items():
        if label != absent:
            rows = [{"query": f"Is {i} a number of {label}?", "choices": ["yes", "no"], "gold": i % 2} for i in range(size)]
            (folder / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = [{"label": label, "dataset_uri": f"{label}.jsonl", "num_fewshot": [1], "icl_task_type": "multiple_choice"} for label in sizes]
    (folder / "tasks_small.yaml").write_text(json.dumps({"icl_tasks": listed}))
    places = {"x": ["large", "small"], "y": ["other"]}
    categories = [{"name": n, "benchmarks": [{"name": b, "num_fewshot": 1, "random_baseline": 0.25} for b in members]} for n, members in places.items()]
    asked = {"weighting": "SAMPLE_SZ", "averages": {"core_average": ["x", "y"], "only_y": ["y"]}, "categories": categories}
    (folder / "eval_gauntlet_small.yaml").write_text(json.dumps({"eval_gauntlet": asked}))
    return folder


@pytest.mark.parametrize(
    ("sizes", "absent", "names"),
    [
        ({"large": 36, "small": 4, "other": 12}, "", ["x", "y", "core_average", "only_y"]),
        ({"large": 36, "small": 4, "other": 12}, "small", ["partial/x", "y", "partial/core_average", "only_y"]),
        ({"large": 60, "small": 4, "other": 12}, "", ["partial/x", "partial/y", "partial/core_average", "partial/only_y"]),  # 40 of 60 items are asked
    ],
    ids=["whole", "a task without data", "a sample"],
)
def test_the_gauntlets_own_weights_and_names_decide(prepared, tmp_path, sizes, absent, names):
    tools, inputs = prepared
    folder = foundry_folder(tmp_path / "data", sizes, absent)
    suite = replace(SUITE, symbolic_tasks=("brackets",), own_data_tasks=("identifier",), gauntlet_digest=tasks.digest(folder))
    output = evaluate.run(EvaluateConfig(suite=suite), inputs, replace(tools, gauntlet_data=str(folder)))
    rows = fits("scores", output.tables["scores"]).to_pylist()
    right: dict[str, list[bool]] = {}
    for response in output.tables["responses"].to_pylist():
        right.setdefault(response["benchmark"], []).append(response["correct"])
    of_x = [label for label in ("large", "small") if label != absent]
    rescaled = {label: (sum(right[label]) / len(right[label]) - 0.25) / 0.75 for label in (*of_x, "other")}
    x = sum(rescaled[label] * len(right[label]) for label in of_x) / sum(len(right[label]) for label in of_x)
    by_hand = [x, rescaled["other"], (x + rescaled["other"]) / 2, rescaled["other"]]
    found = {r["category"]: r for r in rows if r["benchmark"] == "*" and r["category"].startswith("gauntlet/")}
    assert list(found) == [f"gauntlet/{name}" for name in names] and [r["score"] for r in found.values()] == pytest.approx(by_hand)
    all_x = [answer for label in of_x for answer in right[label]]
    mean = found[f"gauntlet/{names[0]}"]
    assert (mean["n"], mean["accuracy"], mean["chance"]) == (len(all_x), pytest.approx(sum(all_x) / len(all_x)), 0.5)
    assert {r["category"] for r in rows if r["benchmark"] in of_x} == {f"gauntlet/{names[0]}"}


def test_a_changed_checkpoint_is_refused(prepared, tmp_path):
    tools, inputs = evaluate_inputs(tmp_path)
    (final,) = [r for r in inputs["checkpoints"].to_table().to_pylist() if r["final"]]
    weights = Path(tools.root) / final["uri"] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MoelineError, match=r"model\.safetensors is not what was written"):
        evaluate.run(CONFIG, inputs, tools)
    other = ds.dataset(table("checkpoints", [{**final, "sha256": "f" * 64}]))
    tools, inputs = prepared
    with pytest.raises(MoelineError, match="is not the one that was recorded"):
        evaluate.run(CONFIG, {**inputs, "checkpoints": other}, tools)


def test_what_is_missing_is_named(prepared, tmp_path):
    tools, inputs = prepared
    with pytest.raises(MoelineError, match="found 0 final checkpoints"):
        evaluate.run(CONFIG, {**inputs, "checkpoints": ds.dataset(table("checkpoints", []))}, tools)
    with pytest.raises(MoelineError, match="identifier has 0 items"):
        rows = [r for r in item_rows() if r["benchmark"] != "identifier"]
        evaluate.run(CONFIG, {**inputs, "benchmark_items": ds.dataset(table("benchmark_items", rows))}, tools)
    tools, inputs = evaluate_inputs(tmp_path)
    (tools.root / "tokenizers" / TOKENIZER_ID / "tokenizer.json").unlink()
    with pytest.raises(MoelineError, match=f"Tokenizer {TOKENIZER_ID} is not among the artifacts"):
        evaluate.run(CONFIG, inputs, tools)


def test_weights_that_are_not_numbers_stop_the_stage(tmp_path):
    import torch

    from models import checkpoint

    tools, inputs = evaluate_inputs(tmp_path)
    state = {name: tensor.clone() for name, tensor in examples.model().state_dict().items()}
    state["lm_head.weight"][3, 3] = torch.nan
    folder, digest = checkpoint.write(tmp_path / "checkpoints" / "bad", step=1, tensors={"model": state}, state={})
    (final,) = [r for r in inputs["checkpoints"].to_table().to_pylist() if r["final"]]
    rows = table("checkpoints", [{**final, "uri": str(folder.relative_to(tmp_path)), "sha256": digest}])
    with pytest.raises(MoelineError, match="not a number"):
        evaluate.run(CONFIG, {**inputs, "checkpoints": ds.dataset(rows)}, tools)
