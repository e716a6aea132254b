"""A changed model never meets an old answer: whatever an answer can depend on is part of its key."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import evaluation_suite
import outside_folders
import pytest
from gauntlet_examples import model, tokenizer_json
from test_endpoint import Server

from jobs import cli
from jobs.contract import MoelineError
from jobs.evaluating import answers, command, writing
from jobs.evaluating import model as folders
from models import checkpoint

REPO = Path(__file__).resolve().parents[2]


def place(folder: Path) -> Path:
    """A checkpoint, an outside model and what asks them, as files."""
    tensors = {"model": model().state_dict()}
    checkpoint.write(folder / "run", step=7, tensors=tensors, state={"model": asdict(model().config), "step": 7})
    outside_folders.write(folder / "llama")
    (folder / "words").mkdir()
    (folder / "words" / "tokenizer.json").write_bytes(tokenizer_json())
    for name in ("models", "jobs"):
        shutil.copytree(REPO / name, folder / "code" / name, ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")])
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return place(tmp_path_factory.mktemp("place"))


def own_checkpoint(folder):
    (found,) = (folder / "run").glob("*/state.json")
    return folders.find(found.parent, tokenizer=folder / "words").identity()


def llama(folder):
    return folders.find(folder / "llama").identity()


def code(folder):
    return answers.code_digest(folder / "code")


def other_config(folder):
    changed = asdict(model().config)
    changed["rope_theta"] *= 2
    shutil.rmtree(folder / "run")
    checkpoint.write(folder / "run", step=7, tensors={"model": model().state_dict()}, state={"model": changed, "step": 7})


def other_state(folder):
    shutil.rmtree(folder / "run")
    checkpoint.write(folder / "run", step=7, tensors={"model": model().state_dict()}, state={"model": asdict(model().config), "step": 7, "seen": 9})


def other_file(name, text="x\n"):
    def change(folder):
        with (folder / name).open("a") as file:
            file.write(text)

    return change


CHANGES = {
    "a checkpoint's config": (own_checkpoint, other_config, False),
    "what a checkpoint says of its training": (own_checkpoint, other_state, True),
    "a checkpoint's tokenizer": (own_checkpoint, other_file("words/tokenizer.json", " "), False),
    **{
        f"{name} of a tokenizer": (llama, other_file(f"llama/{name}"), False)
        for name in ("vocab.txt", "spiece.model", "tokenizer.model", "merges.txt", "dict.tiktoken", "source.spm", "words-of-its-own")
    },
    "pickled weights, which are never read": (llama, other_file("llama/pytorch_model.bin"), True),
    **{
        f"the code in {name}": (code, other_file(f"code/{name}", "\n"), False)
        for name in (
            "models/gauntlet/scoring.py", "jobs/evaluating/model.py", "jobs/evaluating/command.py", "jobs/services/endpoint.py",
            "jobs/services/ray_scoring.py", "jobs/lm_eval_command.py",
        )
    },
    "code that asks nothing": (code, other_file("code/jobs/cli.py", "\n"), True),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_an_answer_depends_on_is_in_its_key(what, original, tmp_path):
    identity, change, same = CHANGES[what]
    shutil.copytree(original, tmp_path / "place")
    before = identity(tmp_path / "place")
    answers.code_digest.cache_clear()
    change(tmp_path / "place")
    assert (identity(tmp_path / "place") == before) is same


def test_a_folder_without_any_tokenizer_is_refused(original, tmp_path):
    shutil.copytree(original / "llama", tmp_path / "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "llama" / name).unlink()
    with pytest.raises(MoelineError, match="no tokenizer in"):
        folders.find(tmp_path / "llama")


def asked(server, folder, **settings):
    data = evaluation_suite.write(folder / "data")
    options = command.Options(model=server.url, suite="small", data=data, out=folder / "out", tasks=("said",), **settings)
    return command.run(options, cache_folder=folder / "cache")["run"]


def test_a_served_model_is_the_one_whose_name_was_resolved(tmp_path):
    server = Server()
    assert asked(server, tmp_path)["asked"] == 8
    assert asked(server, tmp_path, served_model="served", reuse_answers=True)["from_journal"] == 8  # the same name, given or not
    server.name = "another"
    assert asked(server, tmp_path, reuse_answers=True) | {"seconds": 0} == {"asked": 8, "from_journal": 0, "from_cache": 0, "seconds": 0}


def test_answers_of_a_served_model_serve_a_killed_run_but_no_later_one(tmp_path):
    server = Server()
    assert asked(server, tmp_path)["asked"] == 8
    assert asked(server, tmp_path)["asked"] == 8, "nobody can see whether its weights have changed"
    journal = tmp_path / "out" / answers.JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    assert [n for n, line in enumerate(lines) if "finished" in json.loads(line)] == [8, 17]
    journal.write_text("".join(lines[:12]))  # as a kill leaves it after three answers of the second run
    (tmp_path / "out" / writing.SCORES).unlink()
    run = asked(server, tmp_path)
    assert (run["from_journal"], run["asked"], run["from_cache"]) == (3, 5, 0) and not (tmp_path / "cache").exists()


def test_the_command_line_says_and_takes_what_is_done_with_a_served_models_answers(tmp_path, capsys):
    server, data = Server(), evaluation_suite.write(tmp_path / "data")
    line = ["evaluate", "--model", server.url, "--suite", "small", "--data", str(data), "--out", str(tmp_path / "out"), "--tasks", "said"]
    line += ["--home", str(tmp_path / "home"), "--json"]
    asked = []
    for more in ([], ["--reuse-answers"], []):
        assert cli.main([*line, *more]) == 0
        asked.append(json.loads(capsys.readouterr().out)["run"]["asked"])
    assert asked == [8, 0, 8]
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "only a killed run goes on" in " ".join(capsys.readouterr().out.split())
