"""Review: verdicts and summaries of real responses, and sources that are near for a reason."""

from __future__ import annotations

import json

import pyarrow.dataset as ds
import pytest
from gauntlet_run import SUITE, Folder, documents, evaluate_inputs, fits, table

from jobs.config import EvaluateConfig, ReviewConfig
from jobs.contract import MoelineError
from jobs.stages import evaluate, review

COOKING = "Chop the onions and fry them in butter until golden, then add the flour, stir the sauce and let it simmer with thyme and pepper. "
SAILING = "Hoist the mainsail into the wind, trim the jib sheet, steer the rudder to starboard and watch the halyard and the anchor chain. "


def response(index: int, prompt: str, correct: bool, label: str = "quiz", **more):
    means = [-1.0, -2.0, -3.0, -4.0] if correct else [-2.0, -1.0, -3.0, -4.0]
    choices = [f"{word}{index}" for word in ("a", "bb", "c", "dd")]
    prediction = 0 if correct else 1
    return {
        "run_key": "e" * 32, "benchmark": label, "category": "c", "item_id": str(index), "kind": "multiple_choice", "prompt_hash": "0" * 16,
        "n_prompt_tokens": 10 + index, "choices": choices, "sum_logprobs": means, "mean_logprobs": means, "output": choices[prediction],
        "prediction": prediction, "gold": 0, "correct": correct, "truncated": False, "weights_digest": "0" * 16,
        "item": json.dumps({"prompt": prompt, "source": more.get("source"), "contaminated": more.get("contaminated", False), "subset": ""}),
    }  # fmt: skip


def score_row(label: str, accuracy: float, n: int = 40, **more):
    return {
        "run_key": "e" * 32, "model": "m", "benchmark": label, "category": "c", "shots": 0, "n": n, "metric": "m", "accuracy": accuracy, "stderr": 0.05,
        "chance": 0.25, "best_constant": 0.1, "score": 0.1, "n_contaminated": 0, **more,
    }  # fmt: skip


def document(number: int, uri: str, text: str, split: str = "train"):
    return {
        "doc_id": f"{number * 37 % 256:02x}" * 16, "interval": "2026-11-01", "source": "books", "uri": uri, "text": text, "n_bytes": len(text), "split": split,
    }  # fmt: skip


def inputs(responses, scores, training):
    return {
        "responses": ds.dataset(table("responses", responses)), "scores": ds.dataset(table("scores", scores)),
        "training_documents": ds.dataset(table("training_documents", training)),
    }  # fmt: skip


CORPUS = [
    *(document(i, f"book:kitchen@1/{i}", COOKING * 3) for i in range(10)), *(document(20 + i, f"book:harbour@2/{i}", SAILING * 3) for i in range(10)),
    *(document(60 + i, f"book:secret/{i}", COOKING * 3 + "zzz " * 50, split="held_out") for i in range(10)),
]  # fmt: skip


def test_failed_items_are_led_to_the_part_of_the_corpus_that_speaks_of_them(tmp_path):
    responses = [response(i, COOKING if i % 2 else SAILING, correct=not i % 2) for i in range(40)]
    output = review.run(ReviewConfig(), inputs(responses, [score_row("quiz", 0.5), score_row("*", 0.5)], CORPUS), Folder(tmp_path))
    (failure,) = fits("failures", output.tables["failures"]).to_pylist()
    nearest = json.loads(failure["nearest_sources"])
    assert (nearest[0]["source"], nearest[0]["part"], nearest[0]["failed_items"], nearest[0]["accuracy"]) == ("books", "kitchen@1", 20, 0.0)
    assert len(nearest) == 1 and nearest[0]["cosine"] > 0.3  # sailing items did not fail; held-out documents are not the corpus
    assert (failure["n"], failure["n_failed"]) == (40, 20) and "Right on 20 of 40 (50.0%), 5.0 standard errors above" in failure["summary"]


def test_every_response_gets_one_verdict_and_the_counts_agree(tmp_path):
    responses = [response(i, COOKING, correct=i % 4 != 0, contaminated=i % 8 == 1) for i in range(40)]
    output = review.run(ReviewConfig(), inputs(responses, [score_row("quiz", 0.75)], CORPUS), Folder(tmp_path))
    verdicts = fits("verdicts", output.tables["verdicts"]).to_pylist()
    assert {v["item_id"] for v in verdicts} == {str(i) for i in range(40)} and all(v["evidence"] for v in verdicts)
    counts = json.loads(output.tables["failures"].to_pylist()[0]["verdicts"])
    assert sum(counts.values()) == 40 and counts["contaminated"] == 5 and counts["wrong"] == 10
    assert output.metrics["verdicts"] == counts and output.metrics["n"] == 40


def test_a_group_of_items_that_does_clearly_worse_is_named(tmp_path):
    responses = [response(i, COOKING, correct=(i % 2 == 0) or i % 10 == 1, source="python-docs" if i % 2 else "python-code") for i in range(120)]
    output = review.run(ReviewConfig(), inputs(responses, [score_row("quiz", 0.6)], CORPUS), Folder(tmp_path))
    assert "weakest on items of python-docs (20% against 100%)" in output.tables["failures"].to_pylist()[0]["summary"]


def test_real_responses_are_reviewed_against_the_corpus_they_came_from(tmp_path, one_thread):
    tools, given = evaluate_inputs(tmp_path)
    answered = evaluate.run(EvaluateConfig(suite=SUITE, batch_tokens=4096), given, tools)
    training = [
        {"doc_id": doc_id, "interval": "2026-11-01", "source": source, "uri": f"pypi:stdlib@3/{doc_id}", "text": text, "n_bytes": len(text), "split": "train"}
        for doc_id, source, text in documents()[0]
    ]
    tables = {
        "responses": ds.dataset(fits("responses", answered.tables["responses"])), "scores": ds.dataset(fits("scores", answered.tables["scores"])),
        "training_documents": ds.dataset(table("training_documents", training)),
    }  # fmt: skip
    output = review.run(ReviewConfig(), tables, tools)
    failures = fits("failures", output.tables["failures"]).to_pylist()
    assert {f["benchmark"] for f in failures} == {*SUITE.own_data_tasks, *SUITE.symbolic_tasks}
    for failure in failures:
        assert failure["n"] == 40 and failure["summary"].startswith("Right on ") and failure["summary"].endswith(".")
        assert failure["n_failed"] == sum(json.loads(failure["verdicts"])[v] for v in ("wrong", "near_miss", "constant_answer", "format_failure"))
        nearest = [found["part"] for found in json.loads(failure["nearest_sources"])]
        assert nearest == ([] if failure["benchmark"] == "arithmetic" else ["stdlib@3"] * len(nearest)) and len(nearest) <= 3  # sums have no words
    again = review.run(ReviewConfig(), tables, tools)
    assert again.tables["verdicts"].equals(output.tables["verdicts"]) and again.tables["failures"].equals(output.tables["failures"])


def test_nothing_to_review_and_scores_that_do_not_match_are_errors(tmp_path):
    with pytest.raises(MoelineError, match="found no responses"):
        review.run(ReviewConfig(), inputs([], [score_row("quiz", 0.5)], CORPUS), Folder(tmp_path))
    with pytest.raises(MoelineError, match="Responses to quiz have no score"):
        review.run(ReviewConfig(), inputs([response(0, COOKING, True)], [score_row("other", 0.5)], CORPUS), Folder(tmp_path))


def test_an_empty_corpus_only_costs_the_nearest_sources(tmp_path):
    output = review.run(ReviewConfig(), inputs([response(0, COOKING, False)], [score_row("quiz", 0.0)], []), Folder(tmp_path))
    assert json.loads(output.tables["failures"].to_pylist()[0]["nearest_sources"]) == []


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("pypi:numpy@2.4.6/numpy/core.py#L3", "numpy@2.4.6"),
        ("https://example.org/a/b", "example.org"),
        ("folder/file.txt", "folder"),
        ("/abs/x", "abs"),
        ("", ""),
    ],
)
def test_the_part_of_a_uri_is_its_package_host_or_folder(uri, part):
    assert review.part_of(uri) == part


def test_failures_are_grouped_and_each_group_names_the_documents_that_speak_of_it(tmp_path):
    responses = [response(i, f"{COOKING if i % 3 else SAILING} step {i}", correct=i >= 60) for i in range(80)]
    for r in responses[:60]:  # wrong in many ways, so that no rule explains the answers
        r["prediction"] = 1 + int(r["item_id"]) % 3
        r["mean_logprobs"] = [-2.0, *(-1.0 if k == r["prediction"] else -3.0 for k in (1, 2, 3))]
        r["output"] = r["choices"][r["prediction"]]
    output = review.run(ReviewConfig(), inputs(responses, [score_row("quiz", 0.25, n=80)], CORPUS), Folder(tmp_path))
    groups = fits("failure_groups", output.tables["failure_groups"]).to_pylist()
    assert [(g["failure_group"], g["n"], g["verdict"], g["n_items"]) for g in groups] == [(0, 40, "wrong", 80), (1, 20, "wrong", 80)]
    for g, part in zip(groups, ("kitchen@1", "harbour@2"), strict=True):
        documents = json.loads(g["nearest_documents"])
        assert len(documents) == 5 and all(d["uri"].startswith(f"book:{part}/") and d["cosine"] > 0.2 and d["source"] == "books" for d in documents)
        assert {d["doc_id"] for d in documents} <= {row["doc_id"] for row in CORPUS if row["split"] == "train"}
        assert json.loads(g["sources"]) == [{"source": "books", "share": 1.0}] and (g["n_sampled"], g["n_documents"]) == (20, 20)
    assert "sauce" in groups[0]["words"] or "butter" in groups[0]["words"] or "onions" in groups[0]["words"]
    verdicts = fits("verdicts", output.tables["verdicts"]).to_pylist()
    for number, g in enumerate(groups):
        assert sorted(g["item_ids"]) == sorted(v["item_id"] for v in verdicts if v["failure_group"] == number)
    assert all((v["failure_group"] is None) == (int(v["item_id"]) >= 60) for v in verdicts)
    assert all(v["second_choice"] is not None and v["lead"] == pytest.approx(1.0) and v["format"] == "ok" for v in verdicts)


def test_a_model_without_failures_has_no_group(tmp_path):
    output = review.run(ReviewConfig(), inputs([response(i, COOKING, True) for i in range(30)], [score_row("quiz", 1.0)], CORPUS), Folder(tmp_path))
    assert fits("failure_groups", output.tables["failure_groups"]).num_rows == 0
