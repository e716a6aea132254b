"""A model's weights as safetensors files, one or many with Hugging Face's index, written and read a file at a time.

Change here: how weights lie in files. Not here: config.json and the tokenizer beside them (huggingface.py), checkpoints of a training
(checkpoint.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_FLOATING = ("F64", "F32", "F16", "BF16")


def write(tensors: Mapping[str, Tensor], directory: Path, max_shard_bytes: int) -> None:
    """Write ``tensors`` into ``directory``, replacing what was there: one file, or several of at most ``max_shard_bytes`` (a larger tensor has its
    own) and an index. Only the tensors of one file are copied to the host at a time."""
    from safetensors.torch import save_file  # the configs of a folder can be read without it

    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    files = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for old in [*directory.glob("model*.safetensors"), directory / INDEX]:  # a folder written twice must not mix two models
        old.unlink(missing_ok=True)
    for file, names in zip(files, shards, strict=True):
        save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def read_into(module: nn.Module, directory: Path) -> None:
    """Give ``module`` (which may be on the meta device) the weights in ``directory``, in their stored type.

    Names, shapes and types are compared before a byte of a weight is read, and weights are read a file at a time. Raises ValueError when they do
    not fit or a file is missing or damaged.
    """
    files = _files(directory)
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                header = opened.get_slice(name)
                if name in found or header.get_dtype() not in _FLOATING:
                    raise ValueError(f"{file}: weight {name} is of type {header.get_dtype()} or in two files. Each must be there once, in one of {_FLOATING}.")
                found[name] = tuple(header.get_shape())
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(f"{directory}: {len(wrong)} weights are missing, unknown or of another shape, for example {wrong[:3]}. Is config.json its own?")
    for file in files:
        with _opened(file) as opened, torch.no_grad():
            module.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()}, strict=False, assign=True)  # noqa: SIM118


def _files(directory: Path) -> list[Path]:
    names = {SINGLE}
    if (index := directory / INDEX).is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is no index of weights ({type(error).__name__}: {error}). Copy the folder again.") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not (directory / name).is_file():
            raise ValueError(f"{directory} has no {name}. Only safetensors weights are read; convert pickled ones first.")
    return [directory / name for name in sorted(names)]


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}). Copy it again.") from error
