"""Model folders in Hugging Face's DBRX layout: config.json, safetensors, tokenizer. Written and read without transformers.

Change here: the folder's format. Not here: parameter names, which are DBRX's already (transformer.py).

Two traps (transformers 5.23): ``attn_config.rope_theta`` is ignored there and a top-level ``rope_theta`` is used, while older
versions and Databricks' own code read the nested one. So theta is written in both places, and disagreement is an error on reading.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.transformer import Transformer

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def export(
    model: Transformer, config: ModelConfig, directory: Path, tokenizer_json: bytes | None, *,
    eos_id: int = 0, pad_id: int | None = None, max_shard_bytes: int = 5_000_000_000,
) -> None:  # fmt: skip
    """Write ``model`` so that ``transformers.AutoModelForCausalLM`` and ``AutoTokenizer`` load ``directory`` offline.

    ``tokenizer_json``: a `tokenizers` file, or None for no tokenizer. ``pad_id`` None: padding is ``eos_id``. Raises
    ValueError when an id is not in the tokenizer.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pad_id = eos_id if pad_id is None else pad_id
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    dtype = str(tensors["lm_head.weight"].dtype).removeprefix("torch.")
    _write_weights(tensors, directory, max_shard_bytes)
    _write_json(directory / "config.json", _config_json(config, dtype, eos_id, pad_id))
    _write_json(directory / "generation_config.json", {"eos_token_id": eos_id, "pad_token_id": pad_id})
    if tokenizer_json is not None:
        _write_tokenizer(directory, tokenizer_json, eos_id, pad_id, config.max_seq_len)


def load(directory: Path, *, experts_backend: str = "grouped_mm") -> tuple[Transformer, ModelConfig]:
    """(model in eval mode on CPU in the stored dtype, its config) from a DBRX folder written by ``export`` or by transformers.

    Reads safetensors only. Raises ValueError for another architecture or when weights are missing.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors = _read_weights(directory)
    with torch.device("meta"):
        model = Transformer(config, experts_backend)
    expected, found = ({name: tensor.shape for name, tensor in named.items()} for named in (model.state_dict(), tensors))
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise ValueError(f"{directory}: {len(wrong)} weights are missing, unknown or of another shape, for example {wrong[:3]}. Is config.json its own?")
    model.load_state_dict(tensors, assign=True)
    return model.eval(), config


def read_config(directory: Path) -> ModelConfig:
    """The ModelConfig of a DBRX folder. Raises ValueError for what this model cannot represent."""
    file = Path(directory) / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Give the folder of a Hugging Face DBRX model.") from error
    if raw.get("model_type") != "dbrx":
        raise ValueError(f"{file} describes a {raw.get('model_type')!r} model; only 'dbrx' can be loaded here.")
    attention, ffn = raw.get("attn_config") or {}, raw.get("ffn_config") or {}
    activation, power = (ffn.get("ffn_act_fn") or {"name": "silu"}).get("name"), ffn.get("moe_normalize_expert_weights", 1)
    if activation != "silu" or power != 1:
        raise ValueError(f"{file}: activation {activation!r} and moe_normalize_expert_weights {power!r} are not supported, only 'silu' and 1.")
    clip = attention.get("clip_qkv")
    try:
        return ModelConfig(
            d_model=raw["d_model"], n_heads=raw["n_heads"], n_kv_heads=attention["kv_n_heads"], n_layers=raw["n_layers"],
            ffn_hidden=ffn["ffn_hidden_size"], vocab_size=raw["vocab_size"], max_seq_len=raw["max_seq_len"], n_experts=ffn["moe_num_experts"],
            top_k=ffn["moe_top_k"], clip_qkv=math.inf if clip is None else clip, rope_theta=_rope_theta(file, raw),
            moe_loss_weight=ffn.get("moe_loss_weight", 0.05), init_std=raw.get("initializer_range", 0.02),
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{file} has no {error}. Give a complete DBRX config.") from error


def _rope_theta(file: Path, raw: dict[str, Any]) -> float:
    places = {
        "attn_config.rope_theta": (raw.get("attn_config") or {}).get("rope_theta"),
        "rope_theta": raw.get("rope_theta"),
        "rope_parameters.rope_theta": (raw.get("rope_parameters") or {}).get("rope_theta"),
    }
    given = {place: float(value) for place, value in places.items() if value is not None}
    if (kind := (raw.get("rope_parameters") or {}).get("rope_type", "default")) != "default":
        raise ValueError(f"{file}: rope_type {kind!r} is not supported, only 'default'.")
    if len(set(given.values())) > 1:
        raise ValueError(f"{file} gives different rotary bases: {given}. Write the one the model was trained with in every place.")
    return next(iter(given.values()), 10_000.0)  # transformers' default


def _config_json(config: ModelConfig, dtype: str, eos_id: int, pad_id: int) -> dict[str, Any]:
    return {
        "architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "dtype": dtype, "torch_dtype": dtype,
        "d_model": config.d_model, "n_heads": config.n_heads, "n_layers": config.n_layers, "max_seq_len": config.max_seq_len, "vocab_size": config.vocab_size,
        "attn_config": {
            "attn_pdrop": 0.0, "clip_qkv": None if math.isinf(config.clip_qkv) else config.clip_qkv, "kv_n_heads": config.n_kv_heads,
            "rope_theta": config.rope_theta,
        },
        "ffn_config": {
            "ffn_act_fn": {"name": "silu"}, "ffn_hidden_size": config.ffn_hidden, "moe_num_experts": config.n_experts, "moe_top_k": config.top_k,
            "moe_jitter_eps": None, "moe_loss_weight": config.moe_loss_weight, "moe_normalize_expert_weights": 1.0,
        },
        "rope_theta": config.rope_theta, "initializer_range": config.init_std, "resid_pdrop": 0.0, "emb_pdrop": 0.0, "output_router_logits": False,
        "use_cache": True, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": eos_id, "pad_token_id": pad_id,
    }  # fmt: skip


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_weights(tensors: dict[str, Tensor], directory: Path, max_shard_bytes: int) -> None:
    from safetensors.torch import save_file  # the configs of a folder can be read without it

    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for old in [*directory.glob("model*.safetensors"), directory / INDEX]:  # a folder written twice must not mix two models
        old.unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, directory / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        _write_json(directory / INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map})


def _read_weights(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # the configs of a folder can be read without it

    names = {SINGLE}
    if (directory / INDEX).is_file():
        names = set(json.loads((directory / INDEX).read_bytes())["weight_map"].values())
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        if Path(name).name != name or not (directory / name).is_file():
            raise ValueError(f"{directory} has no {name}. Only safetensors weights are read; convert pickled ones first.")
        tensors.update(load_file(directory / name))
    return tensors


def _write_tokenizer(directory: Path, tokenizer_json: bytes, eos_id: int, pad_id: int, max_length: int) -> None:
    raw = json.loads(tokenizer_json)
    by_id = {id_: token for token, id_ in raw["model"].get("vocab", {}).items()} | {t["id"]: t["content"] for t in raw.get("added_tokens", ())}
    for what, id_ in (("eos_id", eos_id), ("pad_id", pad_id)):
        if id_ not in by_id:
            raise ValueError(f"{what} {id_} is not in the tokenizer, which has {len(by_id)} tokens.")
    (directory / "tokenizer.json").write_bytes(tokenizer_json)
    _write_json(directory / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": by_id[eos_id], "pad_token": by_id[pad_id], "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    })  # fmt: skip
