"""How a model writes by its own rules: generation_config.json of its folder, as transformers reads it.

Foundry's harness gives ``generate`` the end of a text and the longest answer, for code also a temperature; everything else is the model's own
(mode exact). Sampling is done here with our random numbers (sampling.py); what cannot be done is refused, never left out in silence. Mode
fixed asks every model alike, by the likeliest tokens, and looks at none of this.
Change here: which settings are known. Not here: how tokens are drawn (sampling.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.gauntlet.sampling import AS_COMPOSER, Sampling
from models.gauntlet.tasks import CODE, EXACT, GENERATION, Benchmark, Task

FILE = "generation_config.json"
_DRAWING = ("do_sample", "temperature", "top_k", "top_p")
# Foundry's harness sets these itself, or they change no text: which tokens are special, what is returned, caches, guessing ahead of the model.
_HARMLESS = {
    "max_new_tokens", "max_length", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache", "cache_implementation",
    "cache_config", "max_cache_len", "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "num_return_sequences", "is_assistant", "use_mtp", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    "prompt_lookup_num_tokens", "compile_config", "disable_compile", "continuous_batching_config", "low_memory", "prefill_chunk_size", "length_penalty",
    "early_stopping", "renormalize_logits", "remove_invalid_values", "transformers_version",
}  # fmt: skip
# Values at which a setting does nothing.
_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "min_length": 0, "min_new_tokens": 0, "bad_words_ids": [], "suppress_tokens": [],
    "begin_suppress_tokens": [], "sequence_bias": {}, "guidance_scale": 1.0, "token_healing": False, "constraints": [], "force_words_ids": [],
    "stop_strings": [],
}  # fmt: skip
_ONLY_WHEN_DRAWN: dict[str, Any] = {"min_p": 0.0, "top_h": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def of_folder(folder: Path) -> dict[str, Any]:
    """The settings of a model folder that can change a text: of generation_config.json, or where there is none of config.json.

    Raises ValueError when the file is not a JSON object.
    """
    from transformers import GenerationConfig

    file = next((f for f in (folder / FILE, folder / "config.json") if f.is_file()), None)
    try:
        said = json.loads(file.read_bytes()) if file is not None else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}). Repair it, or remove it.") from error
    if not isinstance(said, dict):
        raise ValueError(f"{file} is not a JSON object. Repair it, or remove it.")
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - _HARMLESS  # transformers obeys no other name
    neutral = _NEUTRAL | _ONLY_WHEN_DRAWN
    return {name: value for name, value in said.items() if name in known and value is not None and not (name in neutral and value == neutral[name])}


def applied(benchmarks: Sequence[Benchmark], settings: Mapping[str, Any]) -> tuple[Benchmark, ...]:
    """The benchmarks as a model with these settings is asked. Raises ValueError when one would be written by a rule that is not known here."""
    return tuple(replace(b, task=_applied(b.task, settings)) if b.task.kind in (GENERATION, CODE) and b.task.mode == EXACT else b for b in benchmarks)


def _applied(task: Task, settings: Mapping[str, Any]) -> Task:
    drawn = not task.sampling.is_greedy if task.kind == CODE else settings.get("do_sample", False)
    missing = {k: v for k, v in settings.items() if k not in _DRAWING and (drawn or k not in _ONLY_WHEN_DRAWN)}
    if type(drawn) is not bool or (drawn and task.kind == GENERATION and settings.get("temperature") == 0):
        missing |= {k: settings[k] for k in ("do_sample", "temperature") if k in settings}
    if missing:
        raise ValueError(
            f"task {task.label}: {FILE} of the model sets {str(missing)[:300]}. In mode exact a model writes by its own rules, and this one is not supported. "
            "Leave the task out with --tasks, or take --mode fixed, which asks every model for the likeliest tokens."
        )
    if not drawn:
        return task
    own = {name: settings[name] for name in ("top_k", "top_p") if name in settings}
    try:
        if task.kind == CODE:  # what the task's YAML says goes first
            own = {name: value for name, value in own.items() if getattr(task.sampling, name) == getattr(AS_COMPOSER, name)}
            return replace(task, sampling=replace(task.sampling, **own))
        return replace(task, own_rules=Sampling(temperature=settings.get("temperature", 1.0), **own))
    except ValueError as error:
        raise ValueError(f"task {task.label}: {FILE} of the model: {error}") from None
