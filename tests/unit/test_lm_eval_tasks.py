"""Tasks of lm_eval inside a suite of ``moeline evaluate``: the numbers of lm_eval's hf backend, kept apart from Foundry's, resumed and cached."""

from __future__ import annotations

import json
import os
import shutil
import sys

import evaluation_suite
import pyarrow.parquet as pq
import pytest
import small_lm_eval

from jobs.contract import MoelineError
from jobs.evaluating import answers, command, writing
from jobs.services import responses

pytestmark = pytest.mark.usefixtures("offline_lm_eval")
pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra test)")
pytest.importorskip("accelerate", reason="lm_eval's hf backend needs accelerate (extra test)")


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


def alone(folder, *entries):
    """A suite of nothing but these entries."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tasks_alone.yaml"
    file.write_text(json.dumps({"icl_tasks": list(entries)}))
    return file


def metrics(result):
    return {one["benchmark"]: {f"{m['name']},{m['filter']}": m["value"] for m in one["metrics"]} for one in result["lm_eval"]}


def unchanging(result):
    return {k: v for k, v in result.items() if k != "run"}


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


def test_they_are_marked_as_lm_evals_and_change_no_average_of_foundrys(models, data, include, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    without = json.loads((data / "yamls/tasks_small.yaml").read_text())
    without["icl_tasks"] = [entry for entry in without["icl_tasks"] if "lm_eval_task" not in entry]
    (tmp_path / "data/yamls/tasks_small.yaml").write_text(json.dumps(without))
    capsys.readouterr()
    mixed, pure = evaluate(models["llama"], data, tmp_path / "a", include), evaluate(models["llama"], tmp_path / "data", tmp_path / "b", None)
    assert capsys.readouterr().out == ""  # standard output belongs to --json; lm_eval prints while it resamples
    for name in ("scores", "categories", "average", "gauntlet_averages", "partial"):
        assert mixed[name] == pure[name]
    assert pure["lm_eval"] == [] and mixed["questions_digest"] != pure["questions_digest"]
    rows = pq.read_table(tmp_path / "a" / writing.RESPONSES).to_pylist()
    theirs = [r for r in rows if r["benchmark"].startswith("lm_eval/")]
    assert len(theirs) == 4 * small_lm_eval.N and len(rows) == len(theirs) + 50
    assert {r["category"] for r in theirs} == {f"lm_eval/{t}" for t in ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")}
    assert {r["kind"] for r in theirs} == {r["category"] for r in theirs}
    report = (tmp_path / "a" / writing.REPORT).read_text()
    before, after = report.split("## Tasks of lm_eval")
    assert "lm_eval" not in before.replace("lm\\_eval", "lm_eval") and "no part of any average" in after
    assert after.count("\n| lm\\_eval/small\\_") == 2 + 2 + 3 + 2


def test_no_process_is_forked_to_resample(models, data, include, tmp_path, monkeypatch):
    monkeypatch.delenv("DISABLE_MULTIPROC")
    monkeypatch.setattr("multiprocessing.Pool", lambda *_: pytest.fail("lm_eval forked: a child of a process with threads may never end"))
    result = evaluate(models["llama"], data, tmp_path, include, tasks=("lm_eval/small_finish", "lm_eval/small_read"))
    assert any(m["name"] == "perplexity" and m["stderr"] > 0 for one in result["lm_eval"] for m in one["metrics"])
    assert "DISABLE_MULTIPROC" not in os.environ


def test_a_row_holds_what_the_item_was_and_what_was_answered(models, data, include, tmp_path):
    evaluate(models["bos"], data, tmp_path, include, tasks=("lm_eval/small_choose", "lm_eval/small_finish", "lm_eval/small_say"))
    rows = {(r["benchmark"], r["item_id"]): r for r in pq.read_table(tmp_path / writing.RESPONSES).to_pylist()}
    for item in range(small_lm_eval.N):
        choose, finish, say = (rows[f"lm_eval/small_{name}", str(item)] for name in ("choose", "finish", "say"))
        assert choose["gold"] == item % 3 and len(choose["choices"]) == 3 and choose["correct"] == (choose["prediction"] == choose["gold"])
        assert choose["prediction"] == max(range(3), key=lambda i: choose["sum_logprobs"][i])
        assert choose["mean_logprobs"] == pytest.approx([s / n for s, n in zip(choose["sum_logprobs"], choose["n_choice_tokens"], strict=True)])
        assert json.loads(choose["item"])["shots"] == 2 and json.loads(choose["item"])["prompt"].endswith("\nAnswer: ")
        assert (finish["gold"], finish["prediction"]) == (0, 0 if finish["correct"] else -1) and finish["choices"] == [f"last{item}"]
        assert len(say["choices"]) == 1 and say["sum_logprobs"] == []
        for row in (choose, finish, say):
            assert row["truncated"] == (item % 4 == 3) == (row["n_prompt_tokens"] > 256) and len(row["weights_digest"]) == 16
    assert any(row["output"] for (label, _), row in rows.items() if label == "lm_eval/small_say")


def test_perplexities_are_neither_right_nor_wrong_for_a_comparison(models, data, include, tmp_path):
    evaluate(models["llama"], data, tmp_path, include, tasks=("lm_eval/small_read", "lm_eval/small_finish"))
    assert pq.read_table(tmp_path / writing.RESPONSES).num_rows == 2 * small_lm_eval.N
    compared = responses.from_file(tmp_path).rows
    assert set(compared["benchmark"].to_pylist()) == {"lm_eval/small_finish"}


def test_shots_and_a_limit_are_lm_evals(models, data, include, tmp_path):
    suite = alone(tmp_path, {"lm_eval_task": "small_choose", "num_fewshot": [1, 3]}, {"lm_eval_task": "small_finish", "num_fewshot": 1})
    result = evaluate(models["llama"], data, tmp_path / "out", include, suite=suite, max_items=6)
    found = metrics(result)
    assert list(found) == ["lm_eval/small_choose/1-shot", "lm_eval/small_choose/3-shot", "lm_eval/small_finish"]
    for label, shots in (("lm_eval/small_choose/1-shot", 1), ("lm_eval/small_choose/3-shot", 3), ("lm_eval/small_finish", 1)):
        task = label.split("/")[1]
        theirs = by_hf(models["llama"], include, bootstrap_iters=0, tasks=[task], num_fewshot=shots, limit=6)
        assert found[label] == pytest.approx({name: theirs["results"][task][name] for name in found[label]}, rel=1e-5)
    assert [(one["shots"], one["n"], one["n_all"]) for one in result["lm_eval"]] == [(k, 6, small_lm_eval.N) for k in (1, 3, 1)]
    assert result["average"] is None and result["scores"] == []


def test_a_group_comes_with_its_tasks_and_its_own_mean(models, data, include, tmp_path):
    shutil.copytree(include, tmp_path / "tasks")
    group = {"group": "both", "task": ["small_choose", "small_finish"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tmp_path / "tasks/both.yaml").write_text(json.dumps(group))
    result = evaluate(models["llama"], data, tmp_path / "out", tmp_path / "tasks", suite=alone(tmp_path, {"lm_eval_task": "both"}))
    found = metrics(result)
    assert {one["benchmark"]: one["group"] for one in result["lm_eval"]} == {
        "lm_eval/small_choose": False, "lm_eval/small_finish": False, "lm_eval/both": True,
    }  # fmt: skip
    assert found["lm_eval/both"]["acc,none"] == pytest.approx((found["lm_eval/small_choose"]["acc,none"] + found["lm_eval/small_finish"]["acc,none"]) / 2)


def test_tasks_that_ship_with_lm_eval_are_asked_over_local_data(data, tmp_path):
    model = small_lm_eval.model_folder(tmp_path / "long", "long")
    names = small_lm_eval.installed(tmp_path)
    suite = alone(tmp_path / "suite", *({"lm_eval_task": name} for name in names))
    found = metrics(evaluate(model, data, tmp_path / "out", tmp_path, suite=suite))
    theirs = by_hf(model, tmp_path, bootstrap_iters=0, tasks=list(names))
    for name in names:
        expected = {k: v for k, v in theirs["results"][name].items() if "," in k and "_stderr," not in k}
        assert found[f"lm_eval/{name}"] == pytest.approx(expected, rel=1e-5)
    rows = [r for r in pq.read_table(tmp_path / "out" / writing.RESPONSES).to_pylist() if r["benchmark"] == "lm_eval/local_winogrande"]
    assert all(r["gold"] == int(r["item_id"]) % 2 and r["correct"] == (r["prediction"] == r["gold"]) for r in rows) and len(rows) == 8


def test_an_unchanged_model_is_scored_again_without_being_loaded(models, data, include, tmp_path, monkeypatch):
    first = evaluate(models["llama"], data, tmp_path / "a", include, cache=tmp_path / "cache")
    monkeypatch.setattr("models.gauntlet.outside_models.load", None)  # loading it now would raise
    again = evaluate(models["llama"], data, tmp_path / "b", include, cache=tmp_path / "cache")
    assert unchanging(again) == unchanging(first) and again["run"]["asked"] == 0 and first["run"]["asked"] == again["run"]["from_cache"]
    assert (tmp_path / "a" / writing.RESPONSES).read_bytes() == (tmp_path / "b" / writing.RESPONSES).read_bytes()


def test_a_run_that_was_stopped_asks_only_what_the_journal_lacks(models, data, include, tmp_path):
    whole = evaluate(models["llama"], data, tmp_path / "whole", include)
    lines = (tmp_path / "whole" / answers.JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / "stopped").mkdir()
    kept = 50 + 20  # all of Foundry's, and some requests of the first task of lm_eval
    (tmp_path / "stopped" / answers.JOURNAL).write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
    rest = evaluate(models["llama"], data, tmp_path / "stopped", include)
    assert unchanging(rest) == unchanging(whole)
    assert rest["run"]["from_journal"] == kept and rest["run"]["asked"] == len(lines) - kept == whole["run"]["asked"] - kept


@pytest.mark.parametrize("what", ["weights", "ends of a generation", "longest sequence", "texts"])
def test_a_change_of_anything_an_answer_depends_on_meets_no_old_answer(what, models, data, include, tmp_path):
    suite = alone(tmp_path, {"lm_eval_task": "small_say"})
    asked = {"suite": suite, "cache": tmp_path / "cache"}
    assert evaluate(models["llama"], data, tmp_path / "a", include, **asked)["run"]["asked"] == small_lm_eval.N
    shutil.copytree(models["llama"], tmp_path / "model")
    shutil.copytree(include, tmp_path / "tasks")
    if what == "weights":
        file = tmp_path / "model/model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif what == "ends of a generation":
        (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    elif what == "longest sequence":
        asked["max_seq_len"] = 200
    else:
        file = tmp_path / "tasks/say.yaml"
        file.write_text(file.read_text().replace("Q: ", "Query: "))
    changed = evaluate(tmp_path / "model", data, tmp_path / "a", tmp_path / "tasks", **asked)
    assert changed["run"]["asked"] == small_lm_eval.N and changed["run"]["from_cache"] == changed["run"]["from_journal"] == 0


def test_an_unknown_task_is_named_with_the_closest(models, data, include, tmp_path):
    for name, closest in (("small_chose", "small_choose"), ("arc_esy", "arc_easy")):
        with pytest.raises(MoelineError, match=rf"no task '{name}'\. Closest:.*{closest}.*--lm-eval-include"):
            evaluate(models["llama"], data, tmp_path / "out", include, suite=alone(tmp_path, {"lm_eval_task": name}))


def test_a_suite_cannot_name_a_file_whose_code_would_be_run(models, data, include, tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\ndef text(doc):\n    return ''\n")
    task = (include / "finish.yaml").read_text()
    (tmp_path / "evil.yaml").write_text(task.replace("\"{{text.split(' ')[:-1]|join(' ')}}\"", "!function evil.text"))
    assert "!function" in (tmp_path / "evil.yaml").read_text()
    with pytest.raises(MoelineError, match="has no task"):
        evaluate(models["llama"], data, tmp_path / "out", include, suite=alone(tmp_path / "suite", {"lm_eval_task": str(tmp_path / "evil.yaml")}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lm_eval_task": 7}, "it must be the name of a task"), ({"lm_eval_task": ""}, "it must be the name of a task"),
        ({"lm_eval_task": "small_say", "num_fewshot": "2"}, "whole numbers"), ({"lm_eval_task": "small_say", "num_fewshot": [1, -1]}, "whole numbers"),
        ({"lm_eval_task": "small_say", "num_fewshot": True}, "whole numbers"), ({"lm_eval_task": "small_say", "num_fewshot": []}, "whole numbers"),
        ({"lm_eval_task": "small_say", "dataset_uri": "x"}, "unknown settings.*dataset_uri"),
        ({"lm_eval_task": "small_say", "num_fewshot": [2, 2]}, "twice"),
    ],
)  # fmt: skip
def test_an_entry_that_is_not_understood_is_an_error(entry, message, models, data, include, tmp_path):
    with pytest.raises(MoelineError, match=message):
        evaluate(models["llama"], data, tmp_path / "out", include, suite=alone(tmp_path, entry))


def test_data_that_is_not_there_is_said(models, data, include, tmp_path):
    shutil.copytree(include, tmp_path / "tasks")
    file = tmp_path / "tasks/finish.yaml"
    file.write_text(file.read_text().replace("finish.test.jsonl", "absent.jsonl"))
    with pytest.raises(MoelineError, match=r"lm_eval/small_finish cannot be evaluated: .*absent.jsonl.*without a network"):
        evaluate(models["llama"], data, tmp_path / "out", tmp_path / "tasks", suite=alone(tmp_path, {"lm_eval_task": "small_finish"}))


def test_what_cannot_ask_lm_eval_tasks_says_so(models, data, include, tmp_path, monkeypatch):
    with pytest.raises(MoelineError, match=r"served model.*lm_eval/small_choose"):
        evaluate("http://127.0.0.1:9/v1", data, tmp_path / "out", include)
    with pytest.raises(MoelineError, match="is not a folder"):
        evaluate(models["llama"], data, tmp_path / "out", tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python sees a package that is not there
    with pytest.raises(MoelineError, match=r"not installed.*moeline\[lm-eval\]"):
        evaluate(models["llama"], data, tmp_path / "out", include)
    assert evaluate(models["llama"], data, tmp_path / "out", include, tasks=("quiz",))["lm_eval"] == []
