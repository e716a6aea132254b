"""``moeline evaluate``: what it writes, that a kill loses nothing, that no answer meets another model, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluation_suite
import outside_folders
import pyarrow.parquet as pq
import pytest
from gauntlet_examples import model, scorer, tokenizer_json

from jobs.contract import MoelineError
from jobs.evaluating import answers, command, writing
from models import huggingface
from models.gauntlet import tasks
from models.gauntlet.scoring import score

REPO = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return evaluation_suite.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    huggingface.export(model(), model().config, folder, tokenizer_json(), eos_id=0, pad_id=1)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return outside_folders.write(tmp_path_factory.mktemp("llama"))


def evaluate(folder, data, out, cache=None, **settings):
    return command.run(command.Options(model=str(folder), suite="small", data=data, out=out, **settings), cache_folder=cache)


def unchanging(result):
    return {k: v for k, v in result.items() if k != "run"}


def test_our_folder_scores_as_our_scorer_does_and_everything_is_written(own, data, tmp_path):
    result = evaluate(own, data, tmp_path)
    rows = pq.read_table(tmp_path / writing.RESPONSES).to_pylist()
    benchmarks = tasks.load_foundry(data / "yamls/tasks_small.yaml", data / "local_data", data / "yamls/eval_gauntlet_small.yaml")
    expected = {(b.task.label, r.item_id): r for b in benchmarks for r in score(b, scorer(batch_tokens=16_384))}
    assert len(rows) == len(expected) == 50
    for row in rows:
        response = expected[row["benchmark"], row["item_id"]]
        assert (row["prediction"], row["gold"], row["correct"], row["prompt_hash"], row["truncated"], row["n_prompt_tokens"]) == (
            response.prediction, response.gold, response.correct, response.prompt_hash, response.truncated, response.n_prompt_tokens,
        )  # fmt: skip
        assert row["sum_logprobs"] == pytest.approx(response.sum_logprobs, abs=1e-4)
        assert [s / n for s, n in zip(row["sum_logprobs"], row["n_choice_tokens"], strict=True)] == pytest.approx(row["mean_logprobs"])
    assert json.loads((tmp_path / writing.SCORES).read_text()) == result
    assert result["max_seq_len"] == 256 and result["partial"] == [] and result["average"]["category"] == "default_average"
    assert {(one["n_contaminated"], one["accuracy_clean"]) for one in (*result["scores"], result["average"])} == {(None, None)}, "nobody looked"
    for one in result["scores"]:
        assert one["accuracy"] == pytest.approx(sum(r["correct"] for r in rows if r["benchmark"] == one["benchmark"]) / one["n"])
    assert not list(tmp_path.glob(".unfinished*"))


def test_a_checkpoint_scores_as_its_export(own, data, tmp_path):
    from dataclasses import asdict

    from models import checkpoint

    folder, _ = checkpoint.write(tmp_path / "run", step=7, tensors={"model": model().state_dict()}, state={"model": asdict(model().config)})
    with pytest.raises(MoelineError, match=r"holds no tokenizer.*--tokenizer"):
        evaluate(folder, data, tmp_path / "a", max_items=4)
    from_checkpoint = evaluate(folder, data, tmp_path / "b", max_items=4, tokenizer=own / "tokenizer.json")
    assert from_checkpoint["scores"] == evaluate(own, data, tmp_path / "c", max_items=4)["scores"]


def test_the_mode_decides_what_is_subtracted_and_both_are_never_mixed(own, data, tmp_path):
    exact, fixed = (evaluate(own, data, tmp_path / mode, mode=mode) for mode in ("exact", "fixed"))
    for mode, result in (("exact", exact), ("fixed", fixed)):
        assert {s["mode"] for s in (*result["scores"], *result["categories"], result["average"])} == {mode} == {result["mode"]}
        for one in result["scores"]:
            baseline = 0.0 if mode == "exact" else max(one["chance"], one["best_constant"])  # the gauntlet's random_baseline is 0
            score = (one["accuracy"] - baseline) / (1 - baseline)
            assert one["score"] == pytest.approx(score) == result["gauntlet_averages"][f"{one['benchmark']}_skill"]
        assert result["gauntlet_averages"]["default_average"] == pytest.approx(result["average"]["score"])
    part = evaluate(own, data, tmp_path / "part", tasks=("quiz",), max_items=8)
    assert set(part["gauntlet_averages"]) == {"partial/quiz_skill", "partial/default_average"}


def weighted(data, folder, weighting, **settings):
    """The small suite in another gauntlet: three benchmarks of 20, 12 and 10 items in one category, one of 8 in another, two averages."""
    shutil.copytree(data, folder)
    members = {"first": ("quiz", "copy", "pairs"), "second": ("said",)}
    categories = [
        {"name": name, "benchmarks": [{"name": label, "num_fewshot": 2, "random_baseline": 0.2} for label in labels]} for name, labels in members.items()
    ]
    gauntlet = {"weighting": weighting, **settings, "averages": {"core_average": ["first", "second"], "only_first": ["first"]}, "categories": categories}
    (folder / "yamls" / "eval_gauntlet_small.yaml").write_text(json.dumps({"eval_gauntlet": gauntlet}))
    return folder


@pytest.mark.parametrize("weighting", ["EQUAL", "SAMPLE_SZ", "LOG_SAMPLE_SZ"])
@pytest.mark.parametrize("rescale", [True, False])
def test_every_average_is_the_one_the_gauntlet_yaml_asks_for(own, data, tmp_path, weighting, rescale):
    result = evaluate(own, weighted(data, tmp_path / "data", weighting, rescale_accuracy=rescale), tmp_path / "out")
    accuracy = {s["benchmark"]: s["accuracy"] for s in result["scores"]}
    score = {label: (a - 0.2) / (0.8 if rescale else 1) for label, a in accuracy.items()}
    weigh = {"EQUAL": lambda n: 1, "SAMPLE_SZ": lambda n: n, "LOG_SAMPLE_SZ": math.log2}[weighting]
    weights = {label: weigh(n) for label, n in (("quiz", 20), ("copy", 12), ("pairs", 10))}
    first = sum(score[label] * w for label, w in weights.items()) / sum(weights.values())
    expected = {"first": first, "second": score["said"], "core_average": (first + score["said"]) / 2, "only_first": first}
    assert result["gauntlet_averages"] == {name: pytest.approx(value) for name, value in expected.items()}
    assert {s["benchmark"]: s["score"] for s in result["scores"]} == {label: pytest.approx(value) for label, value in score.items()}
    assert [(s["benchmark"], s["category"]) for s in result["categories"]] == [("*", "first"), ("*", "second")]
    assert [(s["benchmark"], s["category"]) for s in result["averages"]] == [("**", "core_average"), ("**", "only_first")]
    assert all(s["score"] == pytest.approx(expected[s["category"]]) for s in (*result["averages"], *result["categories"]))
    assert result["average"] == result["averages"][0] and result["averaging"]["weighting"] == weighting
    report = (tmp_path / "out" / writing.REPORT).read_text()
    assert report.index("core\\_average:") < report.index("only\\_first:") < report.index("first: ", report.index("only\\_first:"))
    assert ("(1 - baseline)" in report) is rescale


def test_without_a_gauntlet_the_average_is_called_unweighted(own, data, tmp_path):
    for out, more, name in (("a", {}, "unweighted_average"), ("b", {"tasks": ("quiz", "said")}, "partial/unweighted_average")):
        options = command.Options(model=str(own), suite="tasks_small", data=data, out=tmp_path / out, **more)
        result = command.run(options, cache_folder=tmp_path / "cache")
        assert result["average"]["category"] == name and result["gauntlet_averages"] == {} and len(result["averages"]) == 1
        assert result["average"]["score"] == pytest.approx(sum(s["score"] for s in result["scores"]) / len(result["scores"]))  # one category here
        assert "no gauntlet YAML" in result["averaging"]["by"]


def test_a_part_of_a_suite_is_called_partial(llama, data, tmp_path):
    result = evaluate(llama, data, tmp_path, tasks=("quiz", "said"), max_items=8)
    assert [s["n"] for s in result["scores"]] == [8, 8]
    assert result["partial"] == ["--tasks leaves out copy, pairs", "--max-items 8"] and result["average"]["category"] == "partial/default_average"
    assert "**partial**" in (tmp_path / writing.REPORT).read_text()


def test_a_missing_data_set_is_an_error_unless_it_is_left_out(llama, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/local_data/all/copy.jsonl").unlink()
    with pytest.raises(MoelineError, match="Missing benchmark data: copy"):
        evaluate(llama, tmp_path / "data", tmp_path / "out")
    assert len(evaluate(llama, tmp_path / "data", tmp_path / "out", tasks=("quiz", "pairs"))["scores"]) == 2


def test_texts_of_items_cannot_become_markup_in_the_report(llama, data, tmp_path):
    evaluate(llama, data, tmp_path, tasks=("said",))
    text = re.sub(r"\\[^\w\s]", "", (tmp_path / writing.REPORT).read_text())  # what a backslash makes plain is harmless
    assert "alert" in text
    for forbidden in ("<script", "[x", "**bold", "`rm", "\u202e", "\n# head", "http://"):
        assert forbidden not in text


def test_an_unchanged_model_is_scored_again_without_being_loaded(llama, data, tmp_path, monkeypatch):
    first = evaluate(llama, data, tmp_path / "a", cache=tmp_path / "cache")
    monkeypatch.setattr("models.gauntlet.outside_models.load", None)  # loading it now would raise
    again = evaluate(llama, data, tmp_path / "b", cache=tmp_path / "cache")
    assert unchanging(again) == unchanging(first)
    assert again["run"]["asked"] == 0 and again["run"]["from_cache"] == 50
    assert (tmp_path / "a" / writing.RESPONSES).read_bytes() == (tmp_path / "b" / writing.RESPONSES).read_bytes()


def test_a_larger_part_asks_only_what_the_smaller_one_did_not(llama, data, tmp_path):
    evaluate(llama, data, tmp_path / "a", cache=tmp_path / "cache", max_items=5)
    assert evaluate(llama, data, tmp_path / "b", cache=tmp_path / "cache")["run"] | {"seconds": 0} == {
        "asked": 30, "from_cache": 20, "from_journal": 0, "seconds": 0,
    }  # fmt: skip


@pytest.mark.parametrize("what", ["weights", "tokenizer", "rows", "settings", "mode", "longest sequence", "other items' texts"])
def test_a_change_of_anything_an_answer_depends_on_meets_no_old_answer(what, llama, data, tmp_path):
    asked = {"tasks": ("quiz",), "max_items": 4}
    evaluate(llama, data, tmp_path / "a", cache=tmp_path / "cache", **asked)
    shutil.copytree(llama, tmp_path / "model")
    shutil.copytree(data, tmp_path / "data")
    if what == "weights":
        file = tmp_path / "model/model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1  # one bit of one weight
        file.write_bytes(content)
    elif what == "tokenizer":
        file = tmp_path / "model/tokenizer.json"
        file.write_text(file.read_text() + " ")
    elif what in ("rows", "other items' texts"):  # any item may be the shot of another
        file = tmp_path / "data/local_data/all/quiz.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        lines[0 if what == "rows" else -1] = lines[0].replace("plus", "and")
        file.write_text("".join(lines))
    elif what == "settings":
        file = tmp_path / "data/yamls/tasks_small.yaml"
        file.write_text(file.read_text().replace('"label": "quiz",', '"label": "quiz", "continuation_delimiter": " is ",'))
    elif what == "mode":
        asked["mode"] = "fixed"
    else:
        asked["max_seq_len"] = 128
    changed = evaluate(tmp_path / "model", tmp_path / "data", tmp_path / "a", cache=tmp_path / "cache", **asked)
    assert changed["run"]["asked"] == 4 and changed["run"]["from_cache"] == changed["run"]["from_journal"] == 0


def command_line(llama, data, out, home, *more):
    arguments = ["evaluate", "--model", llama, "--suite", "small", "--data", data, "--out", out, "--no-cache", "--json", "--home", home, *more]
    code = "import sys; from jobs.evaluating import command; command.FIRST_PORTION = command.LARGEST_PORTION = 2; "
    code += "from jobs.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_killed_run_goes_on_where_it_was_and_ends_as_one_that_was_not_killed(llama, data, tmp_path):
    journal = tmp_path / "killed" / answers.JOURNAL
    process = command_line(llama, data, tmp_path / "killed", tmp_path)
    while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < 6):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = journal.read_bytes().count(b"\n")
    assert 6 <= written < 50 and not (tmp_path / "killed" / writing.SCORES).exists()
    with journal.open("ab") as file:
        file.write(b'{"key": "torn by the ki')  # as a kill in the middle of a write leaves it
    outputs = {}
    for name in ("killed", "whole"):
        process = command_line(llama, data, tmp_path / name, tmp_path)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
        outputs[name] = json.loads(stdout)
    assert outputs["killed"]["run"]["from_journal"] == written and outputs["killed"]["run"]["asked"] == 50 - written
    assert outputs["whole"]["run"]["asked"] == 50
    assert unchanging(outputs["killed"]) == unchanging(outputs["whole"])
    assert (tmp_path / "killed" / writing.RESPONSES).read_bytes() == (tmp_path / "whole" / writing.RESPONSES).read_bytes()


def test_portions_hold_what_takes_some_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    sizes = []
    for portion in command._portions([str(n) for n in range(20_000)]):
        sizes.append(len(portion))
        now[0] += len(portion) * (0.001 if len(sizes) < 6 else 0.5)  # then the model becomes slow
    assert sizes[:8] == [16, 64, 256, 1024, 4096, 4096, 10, 10]
    assert sum(sizes) == 20_000 and list(command._portions([])) == []


def test_two_runs_do_not_write_into_one_folder(llama, data, tmp_path):
    with answers.Journal(tmp_path), pytest.raises(MoelineError, match="Another evaluation"):
        evaluate(llama, data, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("quiz", "nothing")}, "has no task nothing. It has copy, pairs, quiz, said"), ({"max_items": 0}, "at least 1"),
        ({"max_seq_len": 10_000}, "2 to 256"), ({"batch_tokens": 0}, "at least 1"), ({"mode": "best"}, "unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(settings, message, llama, data, tmp_path):
    with pytest.raises(MoelineError, match=message):
        evaluate(llama, data, tmp_path, **settings)


def test_a_loop_of_links_and_a_suite_that_is_not_there_are_named(llama, data, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MoelineError, match="cannot be read"):
        evaluate(tmp_path / "loop", data, tmp_path / "out")
    with pytest.raises(MoelineError, match=r"no YAML of this name.*tasks_small\.yaml"):
        command.run(command.Options(model=str(llama), suite="other", data=data, out=tmp_path / "out"), cache_folder=None)


def test_progress_says_how_much_is_left():
    said = []
    progress = writing.Progress(4, said.append)
    progress.skip(2, "quiz")
    progress.done(1)
    progress.done(1)
    assert said[0].startswith("quiz: 3 of 4 items") and said[-1].startswith("quiz: 4 of 4 items") and "s left" in said[-1]
