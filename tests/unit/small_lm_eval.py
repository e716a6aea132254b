"""Small lm_eval tasks of every output type over invented local data, few-shot, and folders of tiny models to ask."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import outside_folders
from gauntlet_examples import documents, model, tokenizer_json

N = 10
# Without a network, and resampled in this process: lm_eval's own pool of forked processes never ends where another thread held a lock.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
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
        "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer: ", "doc_to_choice": "{{options}}", "doc_to_target": "answer",
        "target_delimiter": "",  # white space ends the context
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
        "generation_kwargs": {"until": ["parse", "sub", "<|pad|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 20},
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


def installed(folder: Path) -> tuple[str, ...]:
    """Write tasks that ship with lm_eval, pointed to local data; returns their names."""
    import lm_eval

    rng, place = random.Random(9), Path(lm_eval.__file__).parent / "tasks"
    labels = {"label": ["A", "B", "C", "D"]}
    tasks: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
        "arc_easy": (
            "arc/arc_easy.yaml",
            [{"question": _text(rng, 7), "choices": {"text": [_text(rng, k) for k in (1, 2, 3, 5)], **labels}, "answerKey": "ABCD"[i % 4]} for i in range(9)],
            {"num_fewshot": 3},
        ),
        "lambada_openai": ("lambada/lambada_openai.yaml", [{"text": _text(rng, 12)} for _ in range(8)], {}),
        "wikitext": ("wikitext/wikitext.yaml", [{"page": f" = {_text(rng, 2)} = \n {_text(rng, k)} @-@ {_text(rng, 3)} \n"} for k in (5, 300)], {}),
        "winogrande": (
            "winogrande/default.yaml",
            [{"sentence": f"{_text(rng, 4)} _ {_text(rng, 3)}", "option1": _text(rng, 1), "option2": _text(rng, 3), "answer": "12"[i % 2]} for i in range(8)],
            {"num_fewshot": 2, "fewshot_split": "train"},
        ),
        "gsm8k": (
            "gsm8k/gsm8k.yaml", [{"question": f"{_text(rng, 6)} {i}?", "answer": f"{_text(rng, 3)} #### {i}"} for i in range(5)], {"num_fewshot": 3},
        ),
    }  # fmt: skip
    for name, (yaml, rows, more) in tasks.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits = {split: str(file) for split in ("train", "validation", "test")}
        data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits, "cache_dir": str(folder / "cache")}}
        content = {"include": str(place / yaml), "task": f"local_{name}", "tag": None, **data, **more}
        (folder / f"local_{name}.yaml").write_text(json.dumps(content))
    return tuple(f"local_{name}" for name in tasks)


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


def says_often(folder: Path, *words: str) -> Path:
    """Treble the head's rows of these tokens: then some texts hold one of them within a few tokens, whatever the random weights are."""
    from safetensors.torch import load_file, save_file

    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][[vocabulary[word] for word in words]] *= 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # begins with BOS
)


def has_template(folder: Path) -> Path:
    """As ``adds_bos``, with a chat template that begins with BOS as well."""
    config = adds_bos(folder) / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": _TEMPLATE}))
    return folder


def chats(folder: Path) -> Path:
    """Make the token ``parse`` a special one, and ``one`` a second that ends a generation, as chat models have them."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    special = {"id": content["model"]["vocab"]["parse"], "content": "parse", "special": True}
    content["added_tokens"].append({**special, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)})
    file.write_text(json.dumps(content))
    ends = {"eos_token_id": [0, content["model"]["vocab"]["one"]], "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


def longer(folder: Path) -> Path:
    """Let a model read 600 tokens."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 600}))
    return folder


_CHANGES = {"bos": adds_bos, "template": has_template, "chat": chats, "long": longer}


def model_folder(folder: Path, name: str) -> Path:
    """A tiny random model: ``gpt2``, ``llama``, or a llama with one of _CHANGES; ``own``: ours, in DBRX's layout."""
    if name == "own":
        from models import huggingface

        huggingface.export(model(), model().config, folder, tokenizer_json(), eos_id=0, pad_id=1)
        return folder
    written = outside_folders.write(folder, "llama" if name in _CHANGES else name)
    if name != "gpt2":
        says_often(written, "parse", "sub", "one")
    return _CHANGES[name](written) if name in _CHANGES else written


def suite(folder: Path, *entries: dict[str, Any], file: str = "tasks_small.yaml") -> Path:
    """Put entries into the suite that evaluation_suite wrote into ``folder``; returns its file."""
    suite_file = folder / "yamls" / file
    content = json.loads(suite_file.read_text()) if suite_file.is_file() else {"icl_tasks": []}
    suite_file.write_text(json.dumps({"icl_tasks": [*content["icl_tasks"], *entries]}))
    return suite_file
