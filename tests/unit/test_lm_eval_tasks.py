"""Tasks of lm_eval inside a suite of ``moeline evaluate``: the numbers of lm_eval's hf backend, kept apart from Foundry's, resumed and cached."""

from __future__ import annotations

import json
import os

import evaluation_suite
import pyarrow.parquet as pq
import pytest
import small_lm_eval

from jobs.evaluating import command, writing

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra test)")
pytest.importorskip("accelerate", reason="lm_eval's hf backend needs accelerate (extra test)")


@pytest.fixture(autouse=True, scope="module")
def offline():
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    return small_lm_eval.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = evaluation_suite.write(tmp_path_factory.mktemp("data"))
    small_lm_eval.suite(folder, *({"lm_eval_task": name} for name in small_lm_eval.NAMES))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: small_lm_eval.model_folder(tmp_path_factory.mktemp(name), name) for name in ("llama", "bos")}


def evaluate(model, data, out, include, suite="small", cache=None, **settings):
    options = command.Options(model=str(model), suite=str(suite), data=data, out=out, lm_eval_include=include, **settings)
    return command.run(options, cache_folder=cache)


def by_hf(model, include, bootstrap_iters=100_000, **settings):
    """What lm_eval's own hf backend says."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include), include_defaults=False)
    return simple_evaluate(
        model="hf", model_args={"pretrained": str(model)}, device="cpu", batch_size=1, task_manager=manager, bootstrap_iters=bootstrap_iters,
        **{"tasks": list(small_lm_eval.NAMES)} | settings,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "bos"])
def test_metrics_and_log_probabilities_are_those_of_the_hf_backend(name, models, data, include, tmp_path):
    result, theirs = evaluate(models[name], data, tmp_path, include), by_hf(models[name], include)
    assert [one["task"] for one in result["lm_eval"]] == list(small_lm_eval.NAMES)
    for one in result["lm_eval"]:
        expected = theirs["results"][one["task"]]
        found = {f"{m['name']},{m['filter']}": m["value"] for m in one["metrics"]}
        numbers = {k: v for k, v in expected.items() if "," in k and "_stderr," not in k}
        assert found == pytest.approx(numbers, rel=1e-5) and len(found) in (2, 3)
        for m in one["metrics"]:
            error = expected[f"{m['name']}_stderr,{m['filter']}"]
            assert m["stderr"] == (None if error == "N/A" else pytest.approx(error, rel=1e-4))
        assert (one["shots"], one["n"], one["n_all"]) == (theirs["n-shot"][one["task"]], small_lm_eval.N, small_lm_eval.N)
    rows = {(r["benchmark"], r["item_id"]): r for r in pq.read_table(tmp_path / writing.RESPONSES).to_pylist()}
    for task, samples in theirs["samples"].items():
        for sample in samples:
            row = rows[f"lm_eval/{task}", str(sample["doc_id"])]
            answers = [answer for (answer,) in sample["resps"]]
            if isinstance(answers[0], str):
                assert row["output"] == (sample["filtered_resps"][0] if sample["filter"] == "whole" else row["output"])
            else:
                assert row["sum_logprobs"] == pytest.approx([a[0] if isinstance(a, tuple) else a for a in answers], rel=1e-5, abs=1e-5)
            stored = json.loads(row["item"])["lm_eval"]
            for metric in ("acc", "acc_norm", "exact_match"):
                if metric in sample:
                    assert stored[f"{metric},{sample['filter']}"] == float(sample[metric])
            assert row["correct"] == next((bool(sample[m]) for m in ("acc", "exact_match") if m in sample), None)
