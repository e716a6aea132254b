"""Draws what bench_growth and bench_soak wrote: ``python tests/bench/growth_plot.py growth.jsonl soak.jsonl growth.svg``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "moeline", "svg.fonttype": "none", "font.size": 8}  # the same picture of the same numbers
import matplotlib.pyplot as plt  # noqa: E402


def draw(growth: list[dict], soak: list[dict], to: Path) -> None:
    curves: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for one in growth:
        curves[one["unit"]][one["what"]].append((one["size"], one["cpu_seconds"]))
    figure, axes = plt.subplots(2, 3, figsize=(13, 8))
    for ax, (unit, found) in zip(axes.flat, curves.items(), strict=False):
        for number, (what, points) in enumerate(found.items()):
            ax.loglog(*zip(*points, strict=True), marker="osv^Dxp*"[number % 8], label=what)
        ax.set(xlabel=unit, ylabel="CPU seconds", title=f"after so many {unit}")
        ax.legend(fontsize=6)
    runs = [s["runs"] for s in soak]
    series = [
        ("memory, MB (proportional)", {name: [s["mb"].get(name, 0) for s in soak] for name in soak[-1]["mb"]}),
        ("seconds", {"a run": [s["run_seconds"] for s in soak], "a task waits": [s["wait_seconds"] for s in soak]}),
        ("MB on disk", {"database of Airflow": [s["databases"]["airflow"] for s in soak], "database of MLflow": [s["databases"]["mlflow"] for s in soak],
                        "logs of services": [s["bytes"]["logs"] / 1e6 for s in soak], "logs of tasks": [s["bytes"]["logs/airflow"] / 1e6 for s in soak]}),
    ]  # fmt: skip
    for ax, (label, lines) in zip(list(axes.flat)[3:], series, strict=True):
        for number, (name, values) in enumerate(lines.items()):
            ax.plot(runs, values, marker="osv^Dxp*"[number % 8], label=name)
        ax.set(xlabel="runs in a row", ylabel=label, ylim=(0, None))
        ax.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


if __name__ == "__main__":
    given = [[json.loads(line) for line in Path(name).read_text().splitlines()] for name in sys.argv[1:3]]
    draw(*given, Path(sys.argv[3]))
