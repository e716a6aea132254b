"""Model folders in Hugging Face's DBRX layout: config.json, safetensors, tokenizer. Written and read without transformers.

Change here: the folder's format. Not here: parameter names, which are DBRX's already (transformer.py), how weights lie in files
(weight_files.py).

Two traps (transformers 5.23): ``attn_config.rope_theta`` is ignored there and a top-level ``rope_theta`` is used, while older
versions and Databricks' own code read the nested one. So theta is written in both places, and disagreement is an error on reading.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from models import weight_files
from models.config import ModelConfig
from models.transformer import Transformer


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
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    weight_files.write(model.state_dict(), directory, max_shard_bytes)
    _write_json(directory / "config.json", _config_json(config, dtype, eos_id, pad_id))
    _write_json(directory / "generation_config.json", {"eos_token_id": eos_id, "pad_token_id": pad_id})
    if tokenizer_json is not None:
        _write_tokenizer(directory, tokenizer_json, eos_id, pad_id, config.max_seq_len)


def load(directory: Path, *, experts_backend: str = "grouped_mm") -> tuple[Transformer, ModelConfig]:
    """(model in eval mode on CPU in the stored dtype, its config) from a DBRX folder written by ``export`` or by transformers.

    Reads safetensors only. Raises ValueError for another architecture or when weights are missing or damaged.
    """
    directory = Path(directory)
    config = read_config(directory)
    with torch.device("meta"):
        model = Transformer(config, experts_backend)
    weight_files.read_into(model, directory)
    return model.eval(), config


def read_config(directory: Path) -> ModelConfig:
    """The ModelConfig of a DBRX folder. Raises ValueError for what this model cannot represent."""
    file = Path(directory) / "config.json"
    try:
        raw = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}). Give the folder of a Hugging Face DBRX model.") from error
    if not isinstance(raw, dict) or raw.get("model_type") != "dbrx":
        raise ValueError(f"{file} describes a {raw.get('model_type') if isinstance(raw, dict) else raw!r:.80} model; only 'dbrx' can be loaded here.")
    attention, ffn = raw.get("attn_config") or {}, raw.get("ffn_config") or {}
    if not isinstance(attention, dict) or not isinstance(ffn, dict):
        raise ValueError(f"{file}: attn_config and ffn_config must be objects. Give a complete DBRX config.")
    act, power = ffn.get("ffn_act_fn") or {"name": "silu"}, ffn.get("moe_normalize_expert_weights", 1)
    activation = act.get("name") if isinstance(act, dict) else act
    if activation != "silu" or power != 1:
        raise ValueError(f"{file}: activation {activation!r} and moe_normalize_expert_weights {power!r} are not supported, only 'silu' and 1.")
    clip, theta = attention.get("clip_qkv"), _rope_theta(file, raw)
    try:
        return ModelConfig(
            d_model=raw["d_model"], n_heads=raw["n_heads"], n_kv_heads=attention["kv_n_heads"], n_layers=raw["n_layers"],
            ffn_hidden=ffn["ffn_hidden_size"], vocab_size=raw["vocab_size"], max_seq_len=raw["max_seq_len"], n_experts=ffn["moe_num_experts"],
            top_k=ffn["moe_top_k"], clip_qkv=math.inf if clip is None else clip, rope_theta=theta,
            moe_loss_weight=ffn.get("moe_loss_weight", 0.05), init_std=raw.get("initializer_range", 0.02),
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{file} has no {error}. Give a complete DBRX config.") from error
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{file} gives sizes that cannot be: {error}. Give a complete DBRX config.") from error


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
