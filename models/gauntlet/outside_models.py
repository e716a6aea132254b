"""Causal language models of Hugging Face folders behind the scorer's seam: ``hidden(tokens_BT)`` and ``lm_head``.

The scorer projects only the positions that predict a continuation, so the model is split into its trunk and its head. What stands between
them (a bias, Gemma's soft cap, Cohere's and Granite's scale) is read from the config, and the split is compared with the model's own
forward pass before it is believed; a model that does not split so answers with its own logits, slower but right. So are its faster layers, and the cache.
Change here: how outside models are loaded. Not here: our own DBRX-layout folders (models/huggingface.py), tokens and scores (scoring.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.huggingface_cache import CachedCausalLM
from models.kv_cache import KVCache
from models.packed_layers import pack

MAX_CONFIG_BYTES = 4 << 20  # the largest published config.json are some 100 KB
_PROBE_TOKENS = 12


class Head(nn.Module):
    """Hidden states (N, D) -> logits (N, V), with what the architecture does to its logits."""

    def __init__(self, projection: nn.Module, *, scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.projection, self.scale, self.softcap = projection, scale, softcap

    @property
    def weight(self) -> Tensor:
        return self.projection.weight  # type: ignore[return-value]

    def forward(self, hidden_ND: Tensor) -> Tensor:
        logits_NV = self.projection(hidden_ND) * self.scale
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap


class _Logits(nn.Module):
    """The head of a model whose ``hidden`` are its logits already. ``weight`` (V, 0) tells the size of the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(vocab_size, 0), persistent=False)

    def forward(self, logits_NV: Tensor) -> Tensor:
        return logits_NV


class OutsideModel(CachedCausalLM):
    """A transformers causal language model as the scorer wants it. ``splits`` is False when every position meets the vocabulary.

    ``cache_type``: what Scorer takes, so that shared beginnings are computed once; None where the model cannot continue a cache of ours
    (attention that is not transformers' own kind, a state that is not keys and values). Linear layers may be replaced (packed_layers.py).
    """

    def __init__(self, model: Any) -> None:
        projection = model.get_output_embeddings()
        if getattr(model.config, "is_encoder_decoder", False) or projection is None:
            raise ValueError(f"{type(model).__name__} is not a decoder with a vocabulary head; only causal language models can be scored.")
        super().__init__(model.eval())
        self.vocab_size = int(projection.weight.shape[0])
        self.lm_head: nn.Module = Head(projection, scale=_logit_scale(model.config), softcap=_softcap(model.config))
        self.cache_type: type[KVCache] | None = None
        with torch.inference_mode():
            self.splits = self._split_is_exact()
            if self.splits:
                self._speed_up()
            else:
                self.lm_head = _Logits(self.vocab_size).to(projection.weight.device)

    def hidden(self, tokens_BT: Tensor, *, cache: KVCache | None = None, lengths_B: Tensor | None = None) -> Tensor:
        """What ``lm_head`` takes: (B, T, D), or (B, T, V) where the model does not split. Right padding is never attended to."""
        if self.splits:
            return super().hidden(tokens_BT, cache=cache, lengths_B=lengths_B)
        return self.model(input_ids=tokens_BT, use_cache=False).logits

    def _split_is_exact(self) -> bool:
        probe_BT = self._probe()
        whole = self.model(input_ids=probe_BT, use_cache=False).logits.float()
        states = getattr(self.model.base_model(input_ids=probe_BT, use_cache=False), "last_hidden_state", None)
        if not torch.isfinite(whole).all():
            raise ValueError(f"{type(self.model).__name__} gives logits that are not numbers for a short text; the weights are broken.")
        return states is not None and states.shape[-1] == self.lm_head.weight.shape[1] and self._alike(self.lm_head(states).float(), whole)

    def _speed_up(self) -> None:
        """Faster layers, then a cache; each only when the states of a short text stay what they were."""
        expected_BTD = self.hidden(self._probe())
        put_back = pack(self.model)
        try:
            kept = self._alike(self.hidden(self._probe()), expected_BTD)
        except Exception:  # a layer reaches into another's weight
            kept = False
        if not kept:
            put_back()
        try:
            if getattr(self.model.config, "attention_chunk_size", None) is None and self._alike(self._in_two_passes(), expected_BTD):
                self.cache_type = KVCache
        except Exception:  # transformers raises anything when an architecture takes no cache, positions or attention from outside
            self.cache_type = None

    def _in_two_passes(self) -> Tensor:
        """States (2, T, D) of the probe, row 0 cut after 7 tokens and row 1 after 4, so that the passes have padding."""
        probe_BT, cache, cuts = self._probe(), KVCache(), torch.tensor([7, 4])
        first_BTD = self.hidden(probe_BT[:, :7], cache=cache, lengths_B=cuts.to(probe_BT.device))
        rest = [row[cut:] for row, cut in zip(probe_BT, cuts.tolist(), strict=True)]
        tokens_BT = nn.utils.rnn.pad_sequence(rest, batch_first=True)
        lengths_B = torch.tensor([len(row) for row in rest], device=probe_BT.device)
        then_BTD = self.hidden(tokens_BT, cache=cache.select(torch.arange(2, device=probe_BT.device)), lengths_B=lengths_B)
        rows = zip(first_BTD, then_BTD, cuts.tolist(), rest, strict=True)
        return torch.stack([torch.cat((one[:cut], two[: len(row)])) for one, two, cut, row in rows])

    def _probe(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.vocab_size, (2, _PROBE_TOKENS), generator=generator).to(self.lm_head.weight.device)

    def _alike(self, ours: Tensor, theirs: Tensor) -> bool:
        tolerance = 1e-5 if self.model.dtype == torch.float32 else 2e-2
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def _logit_scale(config: Any) -> float:
    """Cohere multiplies by ``logit_scale``, Granite divides by ``logits_scaling``; others do neither."""
    scale, divisor = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(1.0 if scale is None else scale) / float(1.0 if divisor is None else divisor)


def _softcap(config: Any) -> float | None:
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ValueError saying what is wrong with the folder."""
    file = folder / "config.json"
    try:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder. Give the folder of a model: config.json, *.safetensors and a tokenizer.")
        if not file.is_file():
            raise ValueError(f"{folder} has no config.json, so it is not a Hugging Face model folder.")
        if (size := file.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"{file} has {size} bytes; a model's config has some kilobytes (limit {MAX_CONFIG_BYTES}). Is it another file?")
        config = json.loads(file.read_bytes())
    except OSError as error:  # a loop of links, no permission
        raise ValueError(f"{folder} cannot be read ({error}).") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error or type(error).__name__}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, not a model's config.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in name order. Raises ValueError when there are none, and says why others are not read."""
    found = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if found:
        return found
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder} has only pickled weights ({', '.join(pickled[:3])}). Reading a pickle can run any code in it, so only safetensors are read: "
            "convert it where you trust it, with save_pretrained(..., safe_serialization=True)."
        )
    raise ValueError(f"{folder} has no *.safetensors file. Download the weights as well.")


def max_seq_len(config: dict[str, Any], default: int = 2048) -> int:
    """Longest sequence a config allows, under any of its usual names."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"):
        for place in (config, text):
            if isinstance(place.get(name), int) and place[name] > 1:
                return place[name]
    return default


def load(folder: Path, *, tokenizer: Path | None = None, device: str = "cpu", dtype: str = "float32") -> tuple[OutsideModel, Any]:
    """(model on ``device``, transformers tokenizer of ``tokenizer`` or the folder itself).

    Never runs code from the folder, never opens a pickle, never asks the network.
    Raises ValueError with the reason when transformers cannot build the model, or tokenizer and model do not belong together.
    """
    from transformers import AutoModelForCausalLM

    read_config(folder)
    weight_files(folder)
    words = load_tokenizer(tokenizer or folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except Exception as error:
        raise ValueError(f"{folder} cannot be loaded as a causal language model ({_short(error)}).") from error
    if missing := sorted(report.get("missing_keys") or ()):
        raise ValueError(f"{folder} lacks {len(missing)} weights, for example {missing[:3]}: they would be random numbers. Download the model again.")
    if wrong := list(report.get("mismatched_keys") or ()):
        raise ValueError(f"{folder}: {len(wrong)} weights have another shape than config.json says, for example {wrong[0]}.")
    outside = OutsideModel(model.to(device))
    check_vocabulary(folder, (words.get_vocab() or {"": 0}).values(), outside.vocab_size)
    return outside, words


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder. Raises ValueError with the reason."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises anything for a broken folder
        raise ValueError(f"{folder}: the tokenizer cannot be read ({_short(error)}). The folder needs tokenizer.json, or give --tokenizer.") from error


def check_vocabulary(folder: Path, token_ids: Any, vocab_size: int) -> None:
    """Raises ValueError when the tokenizer gives ids the model has no embedding for."""
    if (highest := max(token_ids)) >= vocab_size:
        raise ValueError(f"{folder}: the tokenizer gives ids up to {highest}, the model has a vocabulary of {vocab_size}. They do not belong together.")


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
