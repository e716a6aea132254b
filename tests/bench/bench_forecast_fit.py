"""make bench: one fit with 1,000 bootstraps, for a loss and for one task and for eight, from 16 runs. Prints seconds; asserts nothing."""

from __future__ import annotations

import time

import numpy as np

from models.scaling import LossLaw, RunPoint, accuracy_from_loss
from models.scaling_selection import Target, forecast_loss_of, forecast_tasks
from models.scaling_tasks import Task

LAW = LossLaw("chinchilla", E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)


def test_fit_with_a_thousand_bootstraps():
    rng = np.random.default_rng(0)
    sizes = [(n, times * 20 * n) for n in (2e8, 4e8, 8e8, 1.3e9) for times in (1, 2, 5, 10)]
    points = [RunPoint(n, d, LAW.predict(n, d) * float(np.exp(rng.normal(0, 3e-3)))) for n, d in sizes]
    curve = accuracy_from_loss(np.array([p.loss for p in points]), chance=0.25, level=0.0, slope=4.0, pivot=2.4)
    tasks = [Task(f"task{i}", np.clip(curve + rng.normal(0, 5e-3, 16), 0, 1), 0.25) for i in range(8)]
    target = Target(1.3e10, 5e12)
    print(f"\n{'what':<24}{'seconds':>9}")
    for what, work in (
        ("loss", lambda: forecast_loss_of(points, target)),
        ("one task", lambda: forecast_tasks(points, tasks[:1], target)),
        ("eight tasks", lambda: forecast_tasks(points, tasks, target)),
    ):
        started = time.monotonic()
        work()
        print(f"{what:<24}{time.monotonic() - started:9.2f}")
