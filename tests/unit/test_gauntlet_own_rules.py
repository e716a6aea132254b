"""A model's generation_config.json: obeyed or refused in mode exact, never ignored in silence; part of what its answers are kept under."""

from __future__ import annotations

import json

import evaluation_suite
import outside_folders
import pyarrow.parquet as pq
import pytest

from jobs.contract import MoelineError
from jobs.evaluating import command, writing
from models.gauntlet import own_rules
from models.gauntlet.sampling import Sampling
from models.gauntlet.tasks import Benchmark, Task

pytestmark = pytest.mark.usefixtures("one_thread")
ENDS = {"eos_token_id": 0, "max_length": 20, "_from_model_config": True, "transformers_version": "5.0", "do_sample": False, "chat_format": "x"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return evaluation_suite.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def evaluate(data, tmp_path):
    folder = outside_folders.write(tmp_path / "llama")

    def run(says, out, **settings):
        (folder / own_rules.FILE).write_text(json.dumps(says))
        options = command.Options(model=str(folder), suite="small", data=data, out=tmp_path / out, **{"tasks": ("said",), **settings})
        result = command.run(options, cache_folder=tmp_path / "cache")
        return result, [row["output"] for row in pq.read_table(tmp_path / out / writing.RESPONSES).to_pylist()]

    return run


def test_sampling_is_obeyed_and_other_settings_meet_no_old_answer(evaluate):
    greedy, likeliest = evaluate(ENDS, "greedy")
    assert greedy["own_rules"] == {"do_sample": False}
    hot, drawn = evaluate({**ENDS, "do_sample": True, "temperature": 5.0, "top_k": 0}, "hot")
    assert hot["run"]["asked"] == 8 and drawn != likeliest
    narrow, one_token = evaluate({**ENDS, "do_sample": True, "temperature": 5.0, "top_k": 1}, "narrow")
    assert narrow["run"]["asked"] == 8 and one_token == likeliest, "the one likeliest token is the greedy one"
    again, same = evaluate({**ENDS, "do_sample": True, "temperature": 5.0, "top_k": 0}, "again")
    assert again["run"]["from_cache"] == 8 and same == drawn


def test_fixed_asks_every_model_for_the_likeliest_tokens(evaluate):
    _, likeliest = evaluate(ENDS, "plain", mode="fixed")
    assert evaluate({"do_sample": True, "temperature": 5.0, "repetition_penalty": 1.3}, "fixed", mode="fixed")[1] == likeliest


@pytest.mark.parametrize(
    ("says", "named"),
    [
        ({"repetition_penalty": 1.1}, "'repetition_penalty': 1.1"), ({"num_beams": 4}, "'num_beams': 4"), ({"do_sample": True, "min_p": 0.1}, "'min_p': 0.1"),
        ({"do_sample": True, "temperature": 0.0}, "'temperature': 0.0"), ({"do_sample": "yes"}, "'do_sample': 'yes'"),
        ({"do_sample": True, "top_p": 2.0}, "top_p above 0"), ({"suppress_tokens": [5]}, "suppress_tokens"), ({"stop_strings": ["x"]}, "stop_strings"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_refused_where_texts_are_written(says, named, evaluate):
    with pytest.raises(MoelineError, match=f"task said: .*{named}"):
        evaluate(says, "out")
    assert evaluate(says, "choice", tasks=("quiz",), max_items=2)[0]["run"]["asked"] == 2  # nothing is written there


def test_a_file_that_is_no_object_is_named(evaluate):
    with pytest.raises(MoelineError, match=r"generation_config\.json is not a JSON object"):
        evaluate([], "out")


def test_what_does_nothing_is_no_setting_and_config_json_stands_in(tmp_path):
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "typical_p": 1.0, "bad_words_ids": None, "sequence_bias": {}, "length_penalty": 2.0}
    (tmp_path / "config.json").write_text(json.dumps({"repetition_penalty": 1.5, "hidden_size": 8}))
    assert own_rules.of_folder(tmp_path) == {"repetition_penalty": 1.5}
    (tmp_path / own_rules.FILE).write_text(json.dumps(neutral))
    assert own_rules.of_folder(tmp_path) == {}


def test_code_takes_what_foundry_does_not_set():
    def applied(settings, **sampling):
        task = Task(label="code", kind="code_evaluation", category="c", sampling=Sampling(**sampling))
        return own_rules.applied([Benchmark(task, ())], settings)[0].task.sampling

    settings = {"do_sample": False, "temperature": 0.9, "top_k": 20, "top_p": 0.8}
    assert applied(settings) == Sampling(temperature=0.2, top_k=20, top_p=0.8)
    assert applied(settings, top_k=7) == Sampling(temperature=0.2, top_k=7, top_p=0.8)
    assert applied({**settings, "min_p": 0.1}, temperature=0.0) == Sampling(temperature=0.0)
    with pytest.raises(ValueError, match=r"task code: .*min_p"):
        applied({"min_p": 0.1})
