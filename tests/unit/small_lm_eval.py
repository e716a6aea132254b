"""Small lm_eval tasks of every output type over invented local data, few-shot, and folders of tiny models to ask."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import outside_folders
from gauntlet_examples import documents

N = 10
_WORDS = [word for _, _, text in documents()[:3] for word in text.split() if word.isalpha()]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _rows() -> dict[str, list[dict[str, Any]]]:
    """Every fourth item is longer than the 256 tokens the models read."""
    rng = random.Random(5)
    long = [200 if i % 4 == 3 else 6 for i in range(N)]
    return {
        "choose": [
            {"question": f"What follows {_text(rng, k)}?", "options": [_text(rng, n) for n in (1, 2, 4)], "answer": i % 3} for i, k in enumerate(long)
        ],
        "finish": [{"text": f"{_text(rng, k)} last{i}"} for i, k in enumerate(long)],
        "read": [{"page": "" if i == 2 else "\n".join(_text(rng, k) for _ in range(3))} for i, k in enumerate(long)],
        "say": [{"question": f"{_text(rng, k)} =", "answer": _text(rng, 1)} for k in long],
    }  # fmt: skip


_COMMON = {"dataset_path": "json", "test_split": "test", "fewshot_split": "train", "num_fewshot": 2, "metadata": {"version": 1.0}}
_SETTINGS: dict[str, dict[str, Any]] = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{options}}", "doc_to_target": "answer",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    },
    "finish": {
        "output_type": "loglikelihood", "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}", "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
    },
    "read": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}", "num_fewshot": 0,
        "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "say": {
        "output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "Q:", "<|pad|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 20},
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "word", "filter": [{"function": "regex", "regex_pattern": "([a-z]+)"}, {"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    },
}  # fmt: skip
NAMES = tuple(f"small_{name}" for name in _SETTINGS)


def write(folder: Path) -> Path:
    """Write task files and their data into ``folder``; returns it. Their data sets are cached below it."""
    folder.mkdir(parents=True, exist_ok=True)
    shots = {name: rows[:4] for name, rows in _rows().items()}
    for name, rows in _rows().items():
        files = {"train": folder / f"{name}.train.jsonl", "test": folder / f"{name}.test.jsonl"}
        for split, file in files.items():
            chosen = [r for r in shots[name] if len(str(r)) < 300] if split == "train" else rows
            file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        data = {"dataset_kwargs": {"data_files": {k: str(v) for k, v in files.items()}, "cache_dir": str(folder / "cache")}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"small_{name}", **_COMMON, **_SETTINGS[name], **data}))  # JSON is YAML
    return folder


def adds_bos(folder: Path) -> Path:
    """Make the tokenizer of a model folder put a BOS token (id 1) before every text."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    template = [{"SpecialToken": {"id": "<|pad|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": template, "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|pad|>": {"id": "<|pad|>", "ids": [1], "tokens": ["<|pad|>"]}},
    }  # fmt: skip
    file.write_text(json.dumps(content))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": "<|pad|>"}))
    return folder


def model_folder(folder: Path, name: str) -> Path:
    """A tiny random model: ``llama``, ``gpt2``, or ``bos``, a llama whose tokenizer adds BOS."""
    written = outside_folders.write(folder, "llama" if name == "bos" else name)
    return adds_bos(written) if name == "bos" else written


def suite(folder: Path, *entries: dict[str, Any], file: str = "tasks_small.yaml") -> Path:
    """Put entries into the suite that evaluation_suite wrote into ``folder``; returns its file."""
    suite_file = folder / "yamls" / file
    content = json.loads(suite_file.read_text()) if suite_file.is_file() else {"icl_tasks": []}
    suite_file.write_text(json.dumps({"icl_tasks": [*content["icl_tasks"], *entries]}))
    return suite_file
