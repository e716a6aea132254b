"""A small suite in Foundry's layout: one task of every kind, with a gauntlet over them."""

from __future__ import annotations

import json
from pathlib import Path

HOSTILE = "<script>alert(1)</script> | [x](http://evil) `rm` \u202e **bold**\n# head"
ROWS = {
    "quiz": [{"query": f"Which is {i} plus {i}?", "choices": [f"{2 * i}", f"{3 * i + 1}", "none of these"], "gold": i % 3} for i in range(20)],
    "copy": [{"context": f"one two {i} one two", "continuation": str(i)} for i in range(12)],
    "pairs": [{"context_options": [f"The {i} cat", "The dog"], "continuation": "was small", "gold": i % 2} for i in range(10)],
    "said": [{"context": f"{HOSTILE} {i} =", "answer": str(i), "aliases": [f"{i}."]} for i in range(8)],
}
KINDS = {"quiz": "multiple_choice", "copy": "language_modeling", "pairs": "schema", "said": "generation_task_with_answers"}


def write(folder: Path) -> Path:
    """Write local_data/ and yamls/ into ``folder``; returns it."""
    (folder / "yamls").mkdir(parents=True, exist_ok=True)
    tasks, categories = [], []
    for label, rows in ROWS.items():
        file = folder / "local_data" / "all" / f"{label}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks.append({"label": label, "dataset_uri": f"eval/local_data/all/{label}.jsonl", "num_fewshot": [2], "icl_task_type": KINDS[label]})
        categories.append({"name": f"{label}_skill", "benchmarks": [{"name": label, "num_fewshot": 2, "random_baseline": 0.0}]})
    (folder / "yamls" / "tasks_small.yaml").write_text(json.dumps({"icl_tasks": tasks}))  # JSON is YAML
    (folder / "yamls" / "eval_gauntlet_small.yaml").write_text(json.dumps({"eval_gauntlet": {"categories": categories}}))
    return folder
