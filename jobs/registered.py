"""A registered model as it may be loaded: fetched into a private folder and checked there, so that nothing changes between the check and the load.

Every loading of a registered model goes through here, but MLflow's own: a pyfunc checks its weights and tokenizer itself (jobs/services/pyfunc_model.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import model_card
from jobs.contract import MoelineError
from jobs.environment import Environment
from models.signature import Verified

HUGGINGFACE = Path("artifacts") / "huggingface"  # in the MLflow model folder: what other tools load
CARD = HUGGINGFACE / "README.md"


@contextmanager
def opened(env: Environment, name: str, version: str, key: Path | None = None) -> Iterator[tuple[Path, Verified]]:
    """(MLflow model folder, whose signature it bears) of a version (a number or ``champion``), removed afterwards.

    Raises MoelineError when it is not registered, cannot be fetched, or is not exactly what was signed by a key trusted here (``key``: by that one).
    """
    from jobs.services import mlflow, signing_key

    number = model_card.registration(env, name, version)["model_version"]
    with tempfile.TemporaryDirectory(prefix="moeline-model-") as private:  # 0700
        folder = mlflow.fetch(env, name, number, Path(private))
        for bytecode in [*folder.rglob("__pycache__")]:  # Python leaves it in a store that MLflow loads from in place; never signed, never needed
            shutil.rmtree(bytecode)
        try:
            verified = signing_key.verify(folder, env.home, key)
        except MoelineError as problem:  # the private folder means nothing to anybody
            raise MoelineError(str(problem).replace(str(folder), f"{name}/{number}")) from None
        yield folder, verified


def export(env: Environment, name: str, version: str, out: Path) -> Verified:
    """Write the checked Hugging Face folder (card and signature of its own inside) to ``out``, which must not exist yet."""
    if out.exists():
        raise MoelineError(f"{out} exists. Name a new folder for the model.")
    with opened(env, name, version) as (folder, verified):
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / HUGGINGFACE, partial)
        partial.rename(out)
    return verified
