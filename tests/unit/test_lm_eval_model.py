"""Our scorer behind lm_eval gives what lm_eval's own ``hf`` backend gives: log-probabilities, greedy flags, texts and metrics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import small_lm_eval

pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra test)")
pytest.importorskip("accelerate", reason="lm_eval's hf backend needs accelerate (extra test)")

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def offline():
    before = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return small_lm_eval.write(tmp_path_factory.mktemp("tasks"))


def results(model, folder, tasks, **settings):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from jobs.lm_eval_command import registered

    registered()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"pretrained": str(folder)} | settings.pop("model_args", {})
    return simple_evaluate(
        model=model, model_args=arguments, tasks=list(small_lm_eval.NAMES), device="cpu", batch_size=1, bootstrap_iters=0, task_manager=manager, **settings
    )


def assert_equal(ours, theirs):
    assert set(ours["results"]) == set(theirs["results"])
    for task, metrics in theirs["results"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float | int)}
        assert {name: ours["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-5), task
    for task, samples in theirs["samples"].items():
        assert len(samples) == len(ours["samples"][task]) > 0
        for mine, expected in zip(ours["samples"][task], samples, strict=True):
            assert (mine["arguments"], mine["filter"]) == (expected["arguments"], expected["filter"])
            for (answer,), (wanted,) in zip(mine["resps"], expected["resps"], strict=True):
                if isinstance(wanted, tuple):
                    assert answer[0] == pytest.approx(wanted[0], rel=1e-5, abs=1e-5) and answer[1] == wanted[1]
                elif isinstance(wanted, float | int):
                    assert answer == pytest.approx(wanted, rel=1e-5, abs=1e-5)
                else:
                    assert answer == wanted


@pytest.mark.parametrize("name", ["llama", "bos", "gpt2"])
def test_every_answer_and_metric_is_that_of_the_hf_backend(name, tasks, tmp_path):
    folder = small_lm_eval.model_folder(tmp_path, name)
    assert_equal(results("moeline", folder, tasks), results("hf", folder, tasks))
