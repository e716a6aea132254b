"""The model under evaluation: which one it is (digests of weights and tokenizer), and a scorer over it, loaded only when something is asked.

Three kinds of folder: our export in DBRX's layout, our checkpoints, any other Hugging Face causal language model. A URL is a served model.
Change here: how a folder is recognised. Not here: how weights are read (models/huggingface.py, models/gauntlet/outside_models.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.services import signing_key
from models import signature

OWN, CHECKPOINT, OUTSIDE, ENDPOINT = "own", "checkpoint", "outside", "endpoint"
DEFAULT_MAX_SEQ_LEN = 2048  # what Foundry's published scores were taken with; longer contexts change the few-shot scores
_LIKE_A_TOKENIZER = ("*token*", "*vocab*", "*merges*", "*.model")  # one of these is in every folder with a tokenizer
_NO_TOKENIZER = ("*.safetensors", "pytorch_model*.bin", "*.ckpt", "*.pth", "tf_model*.h5", "*.msgpack", "*.gguf", "*.onnx", signature.FILE)


@dataclass(frozen=True)
class EvaluatedModel:
    """``weights_digest``: sha256 over the safetensors files and the config ("" for a served model, whose weights nobody can see).

    ``served_model``: its name at the URL. ``own_rules``: what its generation_config.json says of how it writes.
    """

    name: str
    kind: str
    folder: Path | None
    tokenizer: Path | None
    weights_digest: str
    tokenizer_digest: str
    max_seq_len: int
    device: str = "cpu"
    dtype: str = "float32"
    served_model: str = ""
    own_rules: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What two runs must share for their answers to be the same answers."""
        named = {"name": self.name, "served_model": self.served_model} if self.kind == ENDPOINT else {}
        return {
            "weights": self.weights_digest, "tokenizer": self.tokenizer_digest, "max_seq_len": self.max_seq_len, "device": self.device.partition(":")[0],
            "dtype": self.dtype, "kind": self.kind, "own_rules": dict(self.own_rules), **named,
        }  # fmt: skip

    def encoder(self) -> Any:
        """The model's tokenizer. Raises MoelineError when it cannot be read."""
        with _readable(self.name):
            return RememberingEncoder(_encoder(self))

    def scorer(self, batch_tokens: int) -> Any:
        """A Scorer over the loaded model. Raises MoelineError when the folder does not hold a whole model."""
        from models.gauntlet.scoring import Scorer

        with _readable(self.name):
            model, encoder, cache_type = _loaded(self)
        return Scorer(model, RememberingEncoder(encoder), max_seq_len=self.max_seq_len, batch_tokens=batch_tokens, cache_type=cache_type)


@dataclass(frozen=True)
class Loader:
    """Makes the scorer of a model in another process."""

    evaluated: EvaluatedModel
    batch_tokens: int

    def __call__(self) -> Any:
        return self.evaluated.scorer(self.batch_tokens)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise MoelineError(f"Model {name} cannot be loaded: {error}") from error


class RememberingEncoder:
    """An encoder that tokenises a text once: data sets are assembled piece by piece, and their shots and answers come again and again."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.eos_id = encoder, encoder.eos_id
        self._encode = functools.lru_cache(maxsize=100_000)(lambda text, special_tokens: tuple(encoder.encode(text, special_tokens)))

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return list(self._encode(text, special_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoder.decode(ids)


def find(
    folder: Path, *, tokenizer: Path | None = None, max_seq_len: int | None = None, known_tokenizers: Path | None = None, home: Path | None = None
) -> EvaluatedModel:  # fmt: skip
    """The model in ``folder``, identified but not loaded: reads config and tokenizer, and every weight once for its digest.

    ``known_tokenizers``: where our checkpoints' tokenizers lie (a checkpoint holds none). A folder with a signature must bear it rightly, by a key that
    ``home`` trusts; models from elsewhere have none. Raises MoelineError naming what is wrong.
    """
    from models.gauntlet import outside_models, own_rules

    try:
        folder = folder.resolve(strict=True)
        if (folder / signature.FILE).exists():
            signing_key.verify(folder, home)
        if (folder / "state.json").is_file() and (folder / "manifest.json").is_file():
            return _checkpoint(folder, tokenizer, max_seq_len, known_tokenizers)
        config = outside_models.read_config(folder)
        kind = OWN if config.get("model_type") == "dbrx" else OUTSIDE
        weights = outside_models.weight_files(folder)
        limit = outside_models.max_seq_len(config) if kind == OUTSIDE else int(config.get("max_seq_len", DEFAULT_MAX_SEQ_LEN))
        files = _tokenizer_files(tokenizer or folder)
        digest, rules = _digest([*weights, folder / "config.json"]), own_rules.of_folder(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise MoelineError(f"Asked to evaluate {folder}: it cannot be read ({error}). Give the folder of a model.") from error
    except ValueError as error:
        raise MoelineError(f"Asked to evaluate {folder}: {error}") from error
    return EvaluatedModel(
        name=folder.name, kind=kind, folder=folder, tokenizer=tokenizer or folder, weights_digest=digest, tokenizer_digest=_digest(files),
        max_seq_len=_length(max_seq_len, limit), own_rules=rules, **_place(kind),
    )  # fmt: skip


def _length(asked: int | None, limit: int) -> int:
    if asked is None:
        return min(limit, DEFAULT_MAX_SEQ_LEN)
    if not 2 <= asked <= limit:
        raise MoelineError(f"--max-seq-len {asked}: this model takes sequences of 2 to {limit} tokens.")
    return asked


def _checkpoint(folder: Path, tokenizer: Path | None, max_seq_len: int | None, known_tokenizers: Path | None) -> EvaluatedModel:
    from models import checkpoint

    checkpoint.verify(folder)
    state = json.loads((folder / "state.json").read_bytes())
    found = tokenizer or _only_tokenizer(folder, known_tokenizers)
    config = json.dumps(state["model"], sort_keys=True)  # the same weights under another config (experts per token, rope) are another model
    digest = hashlib.sha256(f"{_digest([folder / 'model.safetensors'])}\0{config}".encode()).hexdigest()
    return EvaluatedModel(
        name=f"{folder.parent.name}/{folder.name}", kind=CHECKPOINT, folder=folder, tokenizer=found, weights_digest=digest,
        tokenizer_digest=_digest(_tokenizer_files(found)), max_seq_len=_length(max_seq_len, int(state["model"]["max_seq_len"])), **_place(CHECKPOINT),
    )  # fmt: skip


def _only_tokenizer(folder: Path, known: Path | None) -> Path:
    """The tokenizer of a checkpoint when there is no choice: a checkpoint does not say which tokenizer packed its data."""
    files = {hashlib.sha256(f.read_bytes()).hexdigest(): f.parent for f in sorted((known or folder).glob("*/tokenizer.json"))}
    if len(files) != 1:
        raise MoelineError(f"Checkpoint {folder} holds no tokenizer and {len(files)} are known ({known}). Give --tokenizer FOLDER_OR_FILE.")
    return next(iter(files.values()))


def _tokenizer_files(place: Path) -> list[Path]:
    """Every file of a folder but weights: kinds of tokenizers have files of many names, and tokenizer_config.json may name others."""
    if place.is_file():
        return [place]
    found = [f for f in sorted(place.iterdir()) if f.is_file() and not any(fnmatch.fnmatch(f.name, pattern) for pattern in _NO_TOKENIZER)]
    if not any(fnmatch.fnmatch(f.name, pattern) for f in found for pattern in _LIKE_A_TOKENIZER):
        raise ValueError(f"no tokenizer in {place} (looked for tokenizer.json, vocab.txt ...). Give --tokenizer FOLDER_OR_FILE.")
    return found


def _digest(files: Iterable[Path]) -> str:
    """sha256 hex over names and contents."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return total.hexdigest()


def _place(kind: str) -> dict[str, str]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "dtype": "bfloat16" if device == "cuda" and kind == OUTSIDE else "float32"}


def _loaded(evaluated: EvaluatedModel) -> tuple[Any, Any, Any]:
    """(model, encoder, cache type or None)."""
    assert evaluated.folder is not None and evaluated.tokenizer is not None  # noqa: S101 - a served model never comes here
    from models.gauntlet import outside_models
    from models.gauntlet.prompts import TransformersEncoder
    from models.kv_cache import KVCache

    if evaluated.kind == OUTSIDE:
        model, tokenizer = outside_models.load(evaluated.folder, tokenizer=evaluated.tokenizer, device=evaluated.device, dtype=evaluated.dtype)
        return model, TransformersEncoder(tokenizer), None
    encoder = _encoder(evaluated)
    model = _own_model(evaluated)
    outside_models.check_vocabulary(evaluated.folder, encoder.tokenizer.get_vocab().values(), model.lm_head.weight.shape[0])
    return model.float().to(evaluated.device).eval(), encoder, KVCache


def _encoder(evaluated: EvaluatedModel) -> Any:
    assert evaluated.tokenizer is not None  # noqa: S101 - a served model never comes here
    from models.gauntlet import outside_models
    from models.gauntlet.prompts import TokenizersEncoder, TransformersEncoder

    if evaluated.kind == OUTSIDE:
        return TransformersEncoder(outside_models.load_tokenizer(evaluated.tokenizer))
    file = evaluated.tokenizer if evaluated.tokenizer.is_file() else evaluated.tokenizer / "tokenizer.json"
    return TokenizersEncoder.from_bytes(file.read_bytes())


def _own_model(evaluated: EvaluatedModel) -> Any:
    from models import huggingface

    assert evaluated.folder is not None  # noqa: S101 - as above
    if evaluated.kind == OWN:
        return huggingface.load(evaluated.folder)[0]
    import torch
    from safetensors.torch import load_file

    from models.config import ModelConfig
    from models.transformer import Transformer

    state = json.loads((evaluated.folder / "state.json").read_bytes())
    with torch.device("meta"):
        model = Transformer(ModelConfig(**state["model"]), "grouped_mm")
    model.load_state_dict(load_file(evaluated.folder / "model.safetensors"), assign=True)
    return model
