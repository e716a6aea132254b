"""Wherever a registered model is loaded, its signature is checked: from the registry, as a folder, as MLflow's pyfunc. Really registered, really loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import registered_models as built

from jobs import cli, model_command, registered
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.evaluating import arguments
from jobs.evaluating import model as evaluated
from jobs.services import mlflow, signing_key
from models import signature

LOAD = """
import sys, mlflow, pandas
loaded = mlflow.pyfunc.load_model(sys.argv[1])
print("answered", [type(a).__name__ for a in loaded.predict(pandas.DataFrame({"prompt": ["def"]}), params={"max_new_tokens": 2})])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Environment:
    return built.home(tmp_path_factory.mktemp("registered"))


@pytest.fixture
def stored(home) -> Path:
    """The folder in the registry's store, put back as it was afterwards."""
    [file] = home.artifacts.rglob("MLmodel")
    kept = home.home / "kept"
    shutil.copytree(file.parent, kept)
    yield file.parent
    shutil.rmtree(file.parent)
    kept.rename(file.parent)


def tamper(folder: Path, how: str) -> str:
    """Change the stored model; returns what the refusal must say."""
    weights = folder / "artifacts" / "huggingface" / "model.safetensors"
    if how == "byte":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        return "changed: 'artifacts/huggingface/model.safetensors'"
    if how == "code":
        (folder / "pyfunc_model.py").write_text((folder / "pyfunc_model.py").read_text() + "\n")
        return "changed: 'pyfunc_model.py'"
    if how == "extra":
        (folder / "code" / "sitecustomize.py").write_text("")
        return "added: 'code/sitecustomize.py'"
    if how == "missing":
        (folder / "artifacts" / "huggingface" / "README.md").unlink()
        return "missing: 'artifacts/huggingface/README.md'"
    if how == "unsigned":
        (folder / "model.sig").unlink()
        return "has no signature (model.sig)"
    signature.sign(folder, signature.new_key(), "moeline")
    return "is signed by another key"


@pytest.mark.parametrize("how", ["byte", "code", "extra", "missing", "unsigned", "key"])
def test_every_kind_of_tampering_with_the_registry_is_refused_by_every_command(home, stored, capsys, tmp_path, how):
    said = tamper(stored, how)
    for command in (
        ["model", "verify", "moeline/1"], ["model", "card", "moeline/1", "--stored"], ["model", "export", "moeline/1", "--out", str(tmp_path / "out")],
        ["model", "verify", str(stored)], ["evaluate", "--model", "moeline/1", "--suite", "x", "--data", str(tmp_path), "--out", str(tmp_path / "e")],
    ):  # fmt: skip
        assert cli.main([*command, "--home", str(home.home)]) == 1, command
        told = capsys.readouterr().err
        assert said in told and ("moeline/1" in told or str(stored) in told), command
    assert not (tmp_path / "out").exists()


def test_an_untouched_version_is_verified_and_its_stored_card_names_the_key(home, capsys):
    at = ["--home", str(home.home)]
    assert cli.main(["model", "verify", "moeline/v1", "--json", *at]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"] == signature.fingerprint(signature.public_of(signing_key.private(home.home))) and found["name"] == "moeline" and found["files"] > 40
    assert cli.main(["model", "card", "moeline/1", "--stored", *at]) == 0
    card = capsys.readouterr().out
    assert found["key"] in card and (home.home / "keys" / "model-signing.pub").read_text() in card
    version = mlflow.client(home).get_model_version("moeline", "1")
    assert (version.tags["signing_key"], version.tags["signed_digest"]) == (found["key"], found["digest"])


def test_the_private_key_is_nowhere_but_in_its_file(home):
    secret = signing_key.private(home.home).splitlines()[1]
    holding = [f for f in home.home.rglob("*") if f.is_file() and secret in f.read_bytes()]
    assert holding == [home.home / "keys" / "model-signing.pem"]


def test_bytecode_that_loading_in_place_left_in_the_store_neither_hinders_nor_is_taken_along(home, stored):
    (stored / "code" / "models" / "__pycache__").mkdir()
    (stored / "code" / "models" / "__pycache__" / "huggingface.cpython-311.pyc").write_bytes(b"planted")
    with registered.opened(home, "moeline", "1") as (folder, verified):
        assert verified.name == "moeline" and not [*folder.rglob("__pycache__")] and folder.stat().st_mode & 0o777 == 0o755
        assert folder.parent.stat().st_mode & 0o077 == 0 or folder.parent.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(MoelineError, match="Python writes __pycache__"):
        signing_key.verify(stored, home.home)


def load(folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "MOELINE_MODEL_KEY"} | {"PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=False, env=environment, cwd=folder.parent)


def test_mlflow_loads_it_only_with_a_trusted_key_and_only_as_signed(home, stored, tmp_path):
    keys = str(home.home / "keys")
    found = load(stored, MOELINE_MODEL_KEY=keys)
    assert "answered ['str']" in found.stdout, found.stderr[-2000:]
    assert "No public key is known to check this model's signature with" in load(stored).stderr
    (tmp_path / "other.pub").write_bytes(signature.public_of(signature.new_key()))
    assert "is signed by another key" in load(stored, MOELINE_MODEL_KEY=str(tmp_path / "other.pub")).stderr
    tamper(stored, "byte")
    found = load(stored, MOELINE_MODEL_KEY=keys)
    assert found.returncode != 0 and "changed: 'model.safetensors'" in found.stderr and "answered" not in found.stdout


def test_an_exported_folder_is_signed_by_itself_and_checked_before_it_is_evaluated(home, tmp_path, capsys):
    out = tmp_path / "model"
    assert cli.main(["model", "export", "moeline/1", "--out", str(out), "--home", str(home.home)]) == 0
    assert {f.name for f in out.iterdir()} >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "model.sig", "model-signing.pub"}
    assert evaluated.find(out, home=home.home).kind == "own"
    assert cli.main(["model", "export", "moeline/1", "--out", str(out), "--home", str(home.home)]) == 1
    assert "exists. Name a new folder" in capsys.readouterr().err
    with pytest.raises(MoelineError, match="No public key is known"):
        evaluated.find(out)
    assert cli.main(["model", "verify", str(out), "--key", str(out / "model-signing.pub"), "--home", str(tmp_path / "elsewhere")]) == 0
    (out / "config.json").write_text((out / "config.json").read_text().replace("0.05", "0.06"))
    with pytest.raises(MoelineError, match=r"changed: 'config\.json'"):
        evaluated.find(out, home=home.home)
    (out / "model.sig").unlink()  # then it is a folder like any from elsewhere
    assert evaluated.find(out, home=home.home).kind == "own"


def test_evaluating_a_registered_version_takes_a_checked_copy_for_as_long_as_it_lasts(home, tmp_path):
    with arguments._folder("moeline/1", home) as folder:
        found = evaluated.find(Path(folder), home=home.home)
        assert (found.name, found.kind) == ("moeline-1", "own")
        scorer = found.scorer(1024)
        assert scorer.max_seq_len == built.MODEL.max_seq_len
    assert not Path(folder).exists()
    with arguments._folder(str(tmp_path), home) as folder:  # what is there is taken as it is
        assert folder == str(tmp_path)
    with arguments._folder("http://127.0.0.1:1/v1", home) as folder:
        assert folder == "http://127.0.0.1:1/v1"


def test_a_second_version_of_the_same_home_has_the_same_key_and_a_folder_of_its_own(home, monkeypatch):
    built.patched(monkeypatch)
    built.build(home, seed=2)
    folders = [f.parent for f in home.artifacts.rglob("MLmodel")]
    try:
        assert len(folders) == 2
        assert {signing_key.verify(f, home.home).key for f in folders} == {signature.fingerprint(p) for p in signing_key.trusted(home.home)}
        with registered.opened(home, "moeline", "2") as (_, second), registered.opened(home, "moeline", "1") as (_, first):
            assert first.digest != second.digest
    finally:
        for number in ("2",):
            mlflow.client(home).delete_model_version("moeline", number)


@pytest.mark.parametrize("asked", ["moeline", "moeline/latest", "", "/x", "a/b/1", "moeline/-1", "moeline/٣", "http://127.0.0.1:1/v1"])
def test_what_is_no_name_of_a_version_is_refused(asked):
    with pytest.raises(MoelineError, match="Write NAME/VERSION"):
        model_command.parse(asked)


def test_names_of_versions():
    assert [model_command.parse(a) for a in ("3", "v3", "moeline/3", "champion", "large-2/v12")] == [
        ("moeline", "3"), ("moeline", "3"), ("moeline", "3"), ("moeline", "champion"), ("large-2", "12"),
    ]  # fmt: skip
