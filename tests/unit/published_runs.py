"""The published runs in ../shared/forecast_data as our forecasts take them. They are no part of the repository; tests skip without them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from models.scaling import RunPoint
from models.scaling_selection import Target
from models.scaling_tasks import Task

LADDER = Path(__file__).resolve().parents[2].parent / "shared" / "forecast_data" / "olmo_ladder" / "src" / "scripts" / "paper"
MISSING = "the published runs lie in ../shared/forecast_data, which is not part of the repository"
_MMLU = {"stem": 0.215, "humanities": 0.335, "social_sciences": 0.219, "other": 0.231}
# task -> chance; MMLU is the weighted mean of its four test categories
CHANCE = {
    "mmlu_avg_test": 0.25, "hellaswag_val": 0.25, "arc_challenge_test": 0.25, "arc_easy_test": 0.25, "piqa_val": 0.5, "csqa_val": 0.2,
    "socialiqa_val": 1 / 3, "openbookqa_test": 0.25,
}  # fmt: skip
PARAMS = {"190M": 190354176, "370M": 371262464, "760M": 758220288, "1B": 1279395840, "3B": 3169537280}  # 3B is in no config: 10xC is 200 tokens a parameter
TARGETS = {"7B-4T": ("peteish7_eval_anneal", 6887575552), "13B-5T": ("peteish13_eval_final", 13202396160)}


@dataclass(frozen=True)
class Run:
    """One training: its size, and per evaluation its tokens, C4 loss, and per task (loss on the right answers, accuracy)."""

    name: str
    params: int
    tokens: np.ndarray
    c4: np.ndarray
    tasks: dict[str, tuple[np.ndarray, np.ndarray]]

    def last(self, values: np.ndarray) -> float:
        """Mean of the last five evaluations, as the ladder takes it."""
        return float(values[-5:].mean())


@cache
def ladder_run(name: str, params: int) -> Run:
    """One file of the ladder."""
    with (LADDER / "data" / "ladder-runs" / f"{name}.csv").open() as opened:
        rows = list(csv.DictReader(opened))

    def column(key: str) -> np.ndarray:
        return np.array([float(row[key]) for row in rows])

    def of_task(task: str, form: str) -> np.ndarray:
        parts = {f"mmlu_{c}_test": w for c, w in _MMLU.items()} if task == "mmlu_avg_test" else {task: 1.0}
        return np.average([column(form.format(part)) for part in parts], axis=0, weights=list(parts.values()))

    tasks = {t: (of_task(t, "eval/downstream_bpb/{}_rc_5shot_bpb"), of_task(t, "eval/downstream/{}_rc_5shot_len_norm")) for t in CHANCE}
    counted = rows[0].get("throughput/total_tokens")
    tokens = column("throughput/total_tokens") if counted else column("_step") * column("batch_size_in_tokens")
    return Run(name, params, tokens, column("eval/c4_en-validation/CrossEntropyLoss"), tasks)


def proxies(*sizes: str) -> list[Run]:
    """The ladder's runs of these sizes at 1, 2, 5 and 10 times Chinchilla's tokens."""
    return [ladder_run(f"{size}-{times}xC", PARAMS[size]) for size in sizes for times in (1, 2, 5, 10)]


def points(runs: list[Run]) -> list[RunPoint]:
    return [RunPoint(run.params, float(run.tokens[-1]), run.last(run.c4)) for run in runs]


def tasks(runs: list[Run]) -> list[Task]:
    """All eight tasks, with their own losses."""
    return [
        Task(task, np.array([run.last(run.tasks[task][1]) for run in runs]), chance, np.array([run.last(run.tasks[task][0]) for run in runs]))
        for task, chance in CHANCE.items()
    ]  # fmt: skip


def target(name: str) -> tuple[Target, dict[str, float]]:
    """(what to forecast, the accuracies it reached) of 7B-4T or 13B-5T, or of any run of the ladder."""
    run = ladder_run(*TARGETS[name]) if name in TARGETS else ladder_run(name, PARAMS[name.partition("-")[0]])
    return Target(run.params, float(run.tokens[-1])), {task: run.last(found[1]) for task, found in run.tasks.items()}


def checkpoints(run: Run, task: str) -> tuple[list[float], list[float]]:
    """(losses, accuracies) of the ladder's step 2: without the first tenth, averaged over up to five evaluations."""
    skipped = math.ceil(0.1 * len(run.tokens))

    def averaged(values: np.ndarray) -> list[float]:
        kept = values[skipped:]
        return [float(kept[max(0, i - 4) : i + 1].mean()) for i in range(len(kept))]

    losses, accuracies = run.tasks[task]
    return averaged(losses), averaged(accuracies)
