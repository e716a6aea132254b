"""make bench-growth: what a step costs when there have been GROWTH_RUNS (10,100,1000,10000) model builds, or GROWTH_DAYS (3,30,300,2000) data days, and
how judging grows with GROWTH_BENCHMARKS (26,100,500) benchmarks.

CPU seconds of this process (the machine's other work does not count), and the exponent between neighbouring sizes: 0 does not grow, 1 is linear. What every
run or every day pays is marked *: linear there means quadratic over all of them. A line of JSON per measurement goes to GROWTH_OUT; growth_plot.py draws it.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import builds
import growth_home
import numpy as np
import pytest

from jobs import compare, decision, gate, recipes, stale
from jobs.environment import Environment
from jobs.inputs import resolve_inputs
from jobs.services import delta, ledger, report, responses, results
from jobs.services.kept import Kept
from jobs.stages import pack, train

WARM = 4  # the first size of all is not told: what is imported and compiled at first use is no growth


def sizes(name: str, default: str) -> list[int]:
    return [WARM, *(int(size) for size in os.environ.get(name, default).split(","))]


class Curves:
    def __init__(self, unit: str) -> None:
        self.unit, self.found = unit, dict[str, list[tuple[int, float]]]()

    def take(self, what: str, size: int, do: Callable[[], object]) -> None:
        began = time.process_time()
        do()
        took = time.process_time() - began
        if size == WARM:
            return
        self.found.setdefault(what, []).append((size, took))
        print(f"  {size:6} {self.unit}: {what}: {took:.3f} s", flush=True)
        if os.environ.get("GROWTH_OUT"):
            with open(os.environ["GROWTH_OUT"], "a") as out:
                out.write(json.dumps({"unit": self.unit, "what": what, "size": size, "cpu_seconds": took}) + "\n")

    def table(self) -> None:
        print(f"\n| CPU seconds after so many {self.unit} | " + " | ".join(f"{size:,}" for size, _ in next(iter(self.found.values()))) + " | exponents |")
        for what, points in self.found.items():
            pairs = itertools.pairwise(points)
            exponents = [math.log(max(b[1], 1e-4) / max(a[1], 1e-4)) / math.log(b[0] / a[0]) for a, b in pairs]
            print(f"| {what} | " + " | ".join(f"{took:.3g}" for _, took in points) + " | " + ", ".join(f"{e:.1f}" for e in exponents) + " |")


def homes(root: Path, wanted: Iterable[int]) -> Iterable[tuple[int, Environment]]:
    for size in wanted:
        yield size, Environment.load("local", root / f"home-{size}")


def test_model_builds(tmp_path: Path) -> None:
    curves = Curves("builds")
    for size, env in homes(tmp_path, sizes("GROWTH_RUNS", "10,100,1000,10000")):
        growth_home.of_builds(env, size)
        recipe, kept = recipes.load("tiny"), Kept()
        last = results.find(env, "forecast", builds.Build(size - 1, 0, 0, 0).key("forecast"))
        curves.take("moeline report", size, lambda env=env: report.render(env))
        curves.take("the page, asked first", size, lambda env=env, kept=kept: decision.figures(env, records=report.Records(env, kept)))
        curves.take("the page, asked again", size, lambda env=env, kept=kept: decision.figures(env, records=report.Records(env, kept)))
        curves.take("the gate of one run *", size, lambda env=env, recipe=recipe, last=last: gate.decided(env, recipe, last))
        attempt = ledger.Attempt("train", "tiny", "k" * 32, None, env.stage_resources("train"), time.time())
        row = ledger.charge_row(env, attempt, time.time(), "succeeded")
        curves.take("charging one attempt *", size, lambda env=env, row=row: delta.append(env, "costs", [row]))
        curves.take("finding the last forecast *", size, lambda env=env: results.newest(env, "forecast", recipe="recipe-1"))
        curves.take("one run's own forecast *", size, lambda env=env, last=last: delta.rows(env, "forecasts", where_in=[last.run_key]))
    curves.table()


def test_data_days(tmp_path: Path) -> None:
    curves = Curves("days")
    for size, env in homes(tmp_path, sizes("GROWTH_DAYS", "3,30,300,2000")):
        days, recipe = growth_home.of_days(env, size), recipes.load("smoke")
        assert stale.stale_days(env, recipe) == []
        curves.take("moeline stale", size, lambda env=env, recipe=recipe: stale.stale_days(env, recipe))
        newest = results.find(env, "deduplicate", f"deduplicate-{days[-1]}".ljust(32, "0"))
        curves.take("does one day still hold? *", size, lambda env=env, newest=newest: stale.must_be_done_again(env, "deduplicate", newest))
        curves.take("inputs of packing one day *", size, lambda env=env, recipe=recipe, days=days: resolve_inputs(env, "pack", pack, recipe, days[-1], {}))
        found = resolve_inputs(env, "train", train, recipe, None, {"forecasts": "forecasts@1"})
        curves.take("opening all days for a training", size, lambda env=env, found=found: found.open(env, train, None)["sequences"].count_rows())
    curves.table()


def test_benchmarks(env: Environment) -> None:
    curves, chance = Curves("benchmarks of 100 items"), np.random.default_rng(0)
    for size in sizes("GROWTH_BENCHMARKS", "26,100,500"):
        models = [model(name, size, chance) for name in ("a", "b")]
        curves.take("comparing two models *", size, lambda models=models: compare.of_models(*models))
    curves.table()


def model(name: str, benchmarks: int, chance: np.random.Generator) -> responses.Model:
    import pyarrow as pa

    rows = [
        {**builds.response(name, i, bool(chance.random() < 0.5)), "benchmark": f"t{i % benchmarks}", "category": f"c{i % benchmarks % 6}"}
        for i in range(100 * benchmarks)
    ]
    table = pa.Table.from_pylist([{"confidence": 0.5, **row} for row in rows])
    return responses.Model(name, name, table, name)


if __name__ == "__main__":
    pytest.main([__file__, "-s", "-q"])
