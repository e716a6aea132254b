"""Our scorer behind lm_eval gives what lm_eval's own ``hf`` backend gives: log-probabilities, greedy flags, texts and metrics."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import small_lm_eval
import torch
from gauntlet_examples import model, tokenizer_json

from jobs.contract import MoelineError

pytestmark = pytest.mark.usefixtures("offline_lm_eval")
pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra test)")
pytest.importorskip("accelerate", reason="lm_eval's hf backend needs accelerate (extra test)")

REPO = Path(__file__).resolve().parents[2]
KINDS = ["llama", "bos", "chat", "gpt2", "own"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return small_lm_eval.write(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: small_lm_eval.model_folder(tmp_path_factory.mktemp(name), name))


def results(backend, folder, tasks, names=small_lm_eval.NAMES, chat=False, **model_args):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from jobs.lm_eval_command import registered

    registered()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"pretrained": str(folder)} | model_args
    return simple_evaluate(
        model=backend, model_args=arguments, tasks=list(names), device="cpu", batch_size=1, bootstrap_iters=0, task_manager=manager, apply_chat_template=chat
    )


@pytest.fixture(scope="module")
def by_hf(folder_of, tasks):
    return functools.cache(lambda name: results("hf", folder_of(name), tasks))


def assert_equal(ours, theirs):
    assert set(ours["results"]) == set(theirs["results"])
    for task, metrics in theirs["results"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
        assert {name: ours["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-5), task
    for task, samples in theirs["samples"].items():
        assert len(samples) == len(ours["samples"][task]) > 0
        for mine, expected in zip(ours["samples"][task], samples, strict=True):
            assert (mine["arguments"], mine["filter"]) == (expected["arguments"], expected["filter"])
            for (answer,), (wanted,) in zip(mine["resps"], expected["resps"], strict=True):
                if isinstance(wanted, tuple):
                    assert answer[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-5) and answer[1] == wanted[1]
                else:
                    assert answer == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-5, abs=1e-5))


@pytest.mark.parametrize("name", KINDS)
def test_every_answer_and_metric_is_that_of_the_hf_backend(name, folder_of, by_hf, tasks):
    assert_equal(results("moeline", folder_of(name), tasks), by_hf(name))


def test_generations_end_at_stops_and_at_ends_of_every_kind(folder_of, by_hf):
    """What makes the comparison of texts worth something: some end early, each for its own reason."""
    from transformers import AutoTokenizer

    lengths = {}
    for name in ("llama", "chat"):
        tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
        texts = [sample["resps"][0][0] for sample in by_hf(name)["samples"]["small_say"]]
        lengths[name] = [len(tokenizer(text)["input_ids"]) for text in texts]
        assert min(lengths[name]) < 5 and max(lengths[name]) >= 10
        assert not any(stop in text for text in texts for stop in ("parse", "sub"))
    assert lengths["llama"] != lengths["chat"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("llama", {"max_length": 100}), ("llama", {"add_bos_token": True}), ("bos", {"add_bos_token": False}), ("llama", {"prefix_token_id": 7})],
)
def test_arguments_that_change_the_numbers_change_them_as_in_the_hf_backend(name, arguments, folder_of, by_hf, tasks):
    ours = results("moeline", folder_of(name), tasks, **arguments)
    assert_equal(ours, results("hf", folder_of(name), tasks, **arguments))
    if arguments != {"add_bos_token": True}:  # this tokenizer knows no BOS to add
        with pytest.raises(AssertionError):
            assert_equal(ours, by_hf(name))


def test_conversations_are_those_of_the_hf_backend(folder_of, tasks):
    names = ["small_choose", "small_finish", "small_say"]
    ours, theirs = (results(backend, folder_of("template"), tasks, names, chat=True) for backend in ("moeline", "hf"))
    assert_equal(ours, theirs)
    context, _ = ours["samples"]["small_choose"][0]["arguments"][0]
    assert context.startswith("<|pad|><user> ") and context.count("<assistant>") == 3


def test_a_penalty_of_the_models_own_settings_is_said_to_be_missing(folder_of, tmp_path, caplog):
    from jobs.lm_eval_command import registered

    shutil.copytree(folder_of("llama"), tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"eos_token_id": 0, "repetition_penalty": 1.05, "num_beams": 1, "top_p": 0.8}))
    lm = registered()(pretrained=str(tmp_path / "model"))
    lm.loglikelihood([request("one", " two")])
    assert "repetition_penalty" not in caplog.text
    lm.generate_until([request("one", {"max_gen_toks": 2})])
    assert "{'repetition_penalty': 1.05}" in caplog.text
    (tmp_path / "model/generation_config.json").write_text("[]")
    with pytest.raises(MoelineError, match=r"generation_config\.json is not a JSON object"):
        registered()(pretrained=str(tmp_path / "model"))


def _no_bos(answers):
    encode = answers.tok_encode
    return "tok_encode", lambda self, string, add_special_tokens=None, **_: encode(self, string, add_special_tokens=False)


def _separately(answers):
    return "_encode_pair", lambda self, context, continuation: (self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False))


def _cut_one_more(answers):
    pair = answers._pair
    return "_pair", lambda self, context, continuation: pair(self, context[-(self.max_length - len(continuation)) :], continuation)


def _eos_as_prefix(answers):
    return "prefix_token_id", property(lambda self: self.tokenizer.eos_token_id)


def _only_eos_ends(answers):
    return "ends", property(lambda self: frozenset([0]), lambda self, value: None)


def _special_tokens_are_no_stops(answers):
    return "_special_tokens_with", lambda self, stops: frozenset()


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (_no_bos, "bos"), (_separately, "bos"), (_cut_one_more, "llama"), (_eos_as_prefix, "bos"), (_only_eos_ends, "chat"),
        (_special_tokens_are_no_stops, "chat"),
    ],
)  # fmt: skip
def test_the_comparison_sees_a_rule_that_is_broken(broken, name, folder_of, by_hf, tasks, monkeypatch):
    from models.gauntlet.lm_eval_model import Answers

    monkeypatch.setattr(Answers, *broken(Answers), raising=False)
    with pytest.raises(AssertionError):
        assert_equal(results("moeline", folder_of(name), tasks), by_hf(name))


def test_tasks_that_ship_with_lm_eval_give_the_numbers_of_the_hf_backend(folder_of, tmp_path):
    names = small_lm_eval.installed(tmp_path)
    ours, theirs = (results(backend, folder_of("long"), tmp_path, names) for backend in ("moeline", "hf"))
    assert_equal(ours, theirs)
    assert {config["output_type"] for config in ours["configs"].values()} == {"multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"}
    assert ours["n-shot"] == {"local_arc_easy": 3, "local_lambada_openai": 0, "local_wikitext": 0, "local_winogrande": 2, "local_gsm8k": 3}


def test_a_checkpoint_answers_as_its_export(folder_of, by_hf, tasks, tmp_path):
    from models import checkpoint

    folder, _ = checkpoint.write(tmp_path / "run", step=7, tensors={"model": model().state_dict()}, state={"model": asdict(model().config)})
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    with pytest.raises(MoelineError, match="holds no tokenizer"):
        results("moeline", folder, tasks)
    assert_equal(results("moeline", folder, tasks, tokenizer=str(tmp_path / "tokenizer.json")), by_hf("own"))


def request(*arguments):
    from lm_eval.api.instance import Instance

    return Instance("", {}, arguments, 0)


@pytest.fixture
def lm(folder_of):
    from jobs.lm_eval_command import registered

    return registered()(pretrained=str(folder_of("llama")))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("generate_until", ("a", {"do_sample": True, "temperature": 0.7}), "only the likeliest token"),
        ("generate_until", ("a", {"num_beams": 4}), "only the likeliest token"),
        ("generate_until", ("a", {"max_gen_toks": 256}), "256 new tokens, this model reads 256"),
        ("loglikelihood", ("a", ""), "no token"),
        ("loglikelihood", ("a", " b" * 300), "300 tokens, this model reads 256"),
    ],
)
def test_what_cannot_be_answered_is_said(kind, arguments, message, lm):
    with pytest.raises(ValueError, match=message):
        getattr(lm, kind)([request(*arguments)])


def test_settings_without_effect_on_greedy_texts_are_taken(lm):
    plain, dressed = ({"until": ["x"], "max_gen_toks": 5} | more for more in ({}, {"top_p": 0.9, "num_beams": 1, "temperature": 0, "do_sample": False}))
    assert lm.generate_until([request("one two", plain)]) == lm.generate_until([request("one two", dressed)])


def test_weights_that_give_no_number_are_named(folder_of, lm):
    with torch.no_grad():
        lm.scorer.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="weights are broken"):
        lm.loglikelihood([request("one", " two")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained=DIR"), ({"pretrained": "nowhere"}, "cannot be read"), ({"peft": "x"}, "peft: --model moeline knows pretrained"),
        ({"dtype": "int8"}, "int8"), ({"max_length": "long"}, "max_length=long: it must be a number"), ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"add_bos_token": "maybe"}, "yes or no"), ({"max_length": 999}, "2 to 256"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_model_are_said(arguments, message, folder_of):
    from jobs.lm_eval_command import registered

    with pytest.raises(MoelineError, match=message):
        registered()(**({"pretrained": str(folder_of("llama"))} | arguments if arguments and "pretrained" not in arguments else arguments))


def command_line(*arguments, home, **environment):
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "lm-eval", *map(str, arguments)], cwd=REPO, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | small_lm_eval.OFFLINE | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "MOELINE_HOME": str(home)} | environment,
    )  # fmt: skip


def test_lm_evals_own_command_line_takes_our_model(folder_of, by_hf, tasks, tmp_path):
    ran = command_line(
        "--model", "moeline", "--model_args", f"pretrained={folder_of('llama')}", "--tasks", "small_choose", "--include_path", tasks, "--device", "cpu",
        "--output_path", tmp_path / "out", "--use_cache", tmp_path / "kept", home=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "|small_choose|" in ran.stdout
    (written,) = (tmp_path / "out").glob("*/results_*.json")
    found = json.loads(written.read_text())
    for metric in ("acc,none", "acc_norm,none"):
        assert found["results"]["small_choose"][metric] == by_hf("llama")["results"]["small_choose"][metric]
    assert found["config"]["model"] == "moeline" and len(found["config"]["model_weights_digest"]) == 64
    assert list(tmp_path.glob("kept*.db"))


def test_an_error_of_the_command_line_is_one_line(tmp_path):
    ran = command_line("--model", "moeline", "--model_args", "pretrained=nowhere", home=tmp_path)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("moeline lm-eval: ")


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch):
    from jobs import lm_eval_command

    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python sees a package that is not there
    with pytest.raises(MoelineError, match=r"not installed.*moeline\[lm-eval\]"):
        lm_eval_command.run(["--help"])


def test_a_text_that_ends_with_its_first_token_leaves_the_others_as_they_are(folder_of):
    """Rows are dropped before the cache they were chosen from is used."""
    from jobs.lm_eval_command import registered

    lm = registered()(pretrained=str(folder_of("own")))
    contexts, settings = ["def one", "class Two", "import three", "return four"], {"until": [], "max_gen_toks": 6}
    alone = [lm.generate_until([request(context, settings)])[0] for context in contexts]
    for ended, text in enumerate(alone):
        stops = {"until": [text[:1]], "max_gen_toks": 6}
        expected = [other.split(text[:1])[0] for other in alone]
        assert lm.generate_until([request(context, stops) for context in contexts]) == expected and expected[ended] == ""
