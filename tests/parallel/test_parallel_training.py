"""Several real worker processes train as one does: data parallel, expert parallel, both."""

from __future__ import annotations

from pathlib import Path

import pytest
import tasks
from workers import together

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_worker():
    return {
        "fp32": tasks.curve(tasks.alone(), 25),
        "bf16": tasks.curve(tasks.alone(precision="bf16"), 6),
        "bias": tasks.curve(tasks.alone(**tasks.BIAS), 8),
        "few_rows": tasks.few_rows(tasks.alone(batch_sequences=1)),
    }


def close(found: dict, expected: dict, relative: float) -> None:
    for name, values in expected["steps"].items():
        assert found["steps"][name] == pytest.approx(values, rel=relative), name
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=relative)
    assert list(found["weights"]) == list(expected["weights"])
    for name, values in expected["weights"].items():
        assert found["weights"][name] == pytest.approx(values, rel=1e-3, abs=2e-5), name


@pytest.mark.parametrize(("workers", "expert_parallel"), [(2, 1), (2, 2), (4, 2)])
def test_workers_follow_the_curve_of_one(tmp_path: Path, one_worker: dict, workers: int, expert_parallel: int) -> None:
    found = together(tmp_path, workers, "train", expert_parallel=expert_parallel)
    for rank in range(workers):
        for name in ("fp32", "few_rows", "bias"):
            close(found[rank][name], one_worker[name], 1e-5)
        assert found[rank]["bf16"]["steps"]["loss"] == pytest.approx(one_worker["bf16"]["steps"]["loss"], rel=2e-3)
