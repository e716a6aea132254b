"""``moeline lm-eval``: lm-evaluation-harness's own command line with one model more, ``--model moeline --model_args pretrained=DIR``.

lm_eval finds no models outside itself (its registry knows no entry points), so its command is started from here, after our model is registered.
Change here: which arguments the model takes, how a folder becomes one. Not here: lm_eval's rules (models/gauntlet/lm_eval_model.py).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.evaluating import model as folders

MODEL = "moeline"
_ARGUMENTS = ("pretrained", "tokenizer", "max_length", "batch_tokens", "add_bos_token", "prefix_token_id", "device", "dtype")
_TYPES = {"max_length": int, "batch_tokens": int, "prefix_token_id": int, "add_bos_token": bool}
_LM_EVALS_OWN = {"batch_size", "max_batch_size"}  # lm_eval always gives them; here batch_tokens bounds a pass
# Settings of generation_config.json that change even the likeliest text, and the values at which they do not.
_CHANGE_TEXTS: dict[str, Any] = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_length": 0, "min_new_tokens": 0, "max_new_tokens": None,
    "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": [], "forced_bos_token_id": None, "forced_eos_token_id": None,
    "sequence_bias": {}, "guidance_scale": 1.0, "exponential_decay_length_penalty": None,
}  # fmt: skip
_RESAMPLES_IN_ONE_PROCESS = "DISABLE_MULTIPROC"  # lm_eval.api.metrics.bootstrap_stderr
_DTYPES = ("float32", "bfloat16", "float16")


def require() -> None:
    """Raises MoelineError saying what to install where lm_eval is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MoelineError("lm_eval is not installed, and this needs it. Install it with: pip install 'moeline[lm-eval]' (or lm-eval==0.4.13).")


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """lm_eval resamples in forked processes: a child forked while another thread of ours holds a lock waits for it for ever. Same seeds, same numbers here."""
    before = os.environ.get(_RESAMPLES_IN_ONE_PROCESS)
    os.environ[_RESAMPLES_IN_ONE_PROCESS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_RESAMPLES_IN_ONE_PROCESS) if before is None else os.environ.update({_RESAMPLES_IN_ONE_PROCESS: before})


def tokenizer_of(found: folders.EvaluatedModel, *, add_bos_token: bool | None = None) -> Any:
    """The transformers tokenizer of an identified model, as lm_eval's hf backend loads it; of a bare tokenizer.json, its tokens as they are."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    assert found.tokenizer is not None  # noqa: S101 - a served model never comes here
    place = found.tokenizer
    if place.is_dir() and ((place / "tokenizer_config.json").is_file() or not (place / "tokenizer.json").is_file()):
        bos = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True, **bos)
        except Exception as error:  # transformers raises anything for a broken folder
            raise MoelineError(f"{place}: the tokenizer cannot be read ({type(error).__name__}: {str(error)[:300]}). Give tokenizer=FOLDER.") from error
    from models.gauntlet.prompts import TokenizersEncoder

    file = place / "tokenizer.json" if place.is_dir() else place
    encoder = TokenizersEncoder.from_bytes(file.read_bytes())
    eos = None if encoder.eos_id is None else encoder.tokenizer.id_to_token(encoder.eos_id)
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=eos)


def max_length(found: folders.EvaluatedModel, tokenizer: Any) -> int:
    """The longest text lm_eval's hf backend would give this model: what its config says, else its tokenizer, else 2048."""
    assert found.folder is not None  # noqa: S101 - as above
    if found.kind == folders.CHECKPOINT:
        return int(json.loads((found.folder / "state.json").read_bytes())["model"]["max_seq_len"])
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig

    return resolve_max_length(AutoConfig.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True), tokenizer)


def generation_settings(found: folders.EvaluatedModel) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Of the folder's generation_config.json: (tokens that end a text, what else would change a greedy text)."""
    file = None if found.folder is None else found.folder / "generation_config.json"
    try:
        said = json.loads(file.read_bytes()) if file is not None and file.is_file() else {}
        ends = said.get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise MoelineError(f"{file} is not a JSON object ({error}). Repair it, or remove it.") from error
    other = {name: said[name] for name, neutral in _CHANGE_TEXTS.items() if said.get(name) not in (None, neutral)}
    return tuple(i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int), other


def arguments(
    found: folders.EvaluatedModel,
    *,
    length: int | None = None,
    batch_tokens: int = 16_384,
    add_bos_token: bool | None = None,
    prefix_token_id: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What models.gauntlet.lm_eval_model.Answers takes, for an identified model whose weights are read when it is first asked.

    ``length``: tokens the model reads at most; None: as many as it can.
    """
    tokenizer = tokenizer_of(found, add_bos_token=add_bos_token)
    ends, other = generation_settings(found)
    return {
        "scorer": lambda: found.scorer(batch_tokens), "tokenizer": tokenizer, "max_length": length or max_length(found, tokenizer), "ends": ends,
        "not_applied": other, "add_bos_token": add_bos_token, "prefix_token_id": prefix_token_id,
        "about": {"model_weights_digest": found.weights_digest, "model_dtype": found.dtype, "model_device": found.device},
    }  # fmt: skip


def opened(settings: Mapping[str, Any], known_tokenizers: Path | None = None, home: Path | None = None) -> dict[str, Any]:
    """``arguments`` from --model_args. Raises MoelineError naming an argument that is unknown or a folder that is no model."""
    given = {k: v for k, v in settings.items() if k not in _LM_EVALS_OWN}
    if unknown := sorted(set(given) - set(_ARGUMENTS)):
        raise MoelineError(f"--model_args {', '.join(unknown)}: --model {MODEL} knows {', '.join(_ARGUMENTS)}.")
    if not given.get("pretrained"):
        raise MoelineError(f"--model {MODEL} needs --model_args pretrained=DIR, the folder of a model.")
    for name, wanted in _TYPES.items():
        if name in given and (type(given[name]) is not wanted or (name != "prefix_token_id" and given[name] is not False and given[name] < 1)):
            raise MoelineError(f"--model_args {name}={given[name]}: it must be a {'yes or no (True, False)' if wanted is bool else 'number of tokens'}.")
    tokenizer, length = given.get("tokenizer"), given.get("max_length")
    found = folders.find(
        Path(str(given["pretrained"])),
        tokenizer=Path(str(tokenizer)) if tokenizer else None,
        max_seq_len=length,
        known_tokenizers=known_tokenizers,
        home=home,
    )
    device, dtype = str(given.get("device") or found.device), str(given.get("dtype") or found.dtype)
    if dtype not in _DTYPES or (found.kind != folders.OUTSIDE and dtype != "float32"):
        raise MoelineError(f"dtype={dtype}: known are {', '.join(_DTYPES)}, and our own models are scored in float32.")
    found = replace(found, device=device, dtype=dtype)
    more = {k: given[k] for k in ("batch_tokens", "add_bos_token", "prefix_token_id") if k in given}
    return arguments(found, length=length, **more)


@functools.cache
def registered() -> type:
    """The model class, known to lm_eval as ``moeline``. ``known_tokenizers``: where the tokenizers of our checkpoints lie."""
    from lm_eval.api.registry import register_model

    from models.gauntlet.lm_eval_model import lm_class

    def of_folder(self: Any, **settings: Any) -> None:
        try:
            lm_class().__init__(self, **opened(settings, type(self).known_tokenizers, type(self).home))  # type: ignore[attr-defined,misc]
        except ValueError as error:  # models know nothing of jobs' errors
            raise MoelineError(f"{settings.get('pretrained')}: {error}") from error

    return register_model(MODEL)(type("MoelineFolderLM", (lm_class(),), {"__init__": of_folder, "known_tokenizers": None, "home": None}))


def run(given: Sequence[str], known_tokenizers: Path | None = None, home: Path | None = None) -> None:
    """Run lm_eval's command line with ``given``. Raises MoelineError for what lm_eval cannot do; SystemExit as lm_eval raises it."""
    require()
    from lm_eval.__main__ import cli_evaluate

    registered().known_tokenizers, registered().home = known_tokenizers, home  # type: ignore[attr-defined]
    before = sys.argv
    sys.argv = ["moeline lm-eval", *given]  # lm_eval reads its arguments there and nowhere else
    try:
        with in_this_process():
            cli_evaluate()
    except (ValueError, KeyError, OSError) as error:
        raise MoelineError(f"lm_eval stopped: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = before
