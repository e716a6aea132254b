"""Scoring on Ray workers gives, bit for bit, what one process gives, also when a worker is killed; no worker waits for a slow one."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "unit"))
import evaluation_suite  # noqa: E402 - found by the line above
from gauntlet_examples import encoder, model, scorer, tokenizer_json  # noqa: E402

from jobs import cli  # noqa: E402
from jobs.environment import Environment, Resources  # noqa: E402
from jobs.evaluating import writing  # noqa: E402
from jobs.services import ray_connection, ray_scoring  # noqa: E402
from jobs.services.ray_scoring import RayScorer  # noqa: E402
from models import huggingface  # noqa: E402
from models.gauntlet.sampling import Sampling  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture
def ray(tmp_path_factory):
    with ray_connection.connected(Environment.load("local", tmp_path_factory.mktemp("home")), Resources(cores=2, memory_gib=4)):
        import ray

        yield ray


def loader(kill_once: str = "", slow_once: str = ""):
    folder = str(TESTS / "unit")

    def load():
        sys.path.insert(0, folder)
        from gauntlet_examples import scorer

        made = scorer()
        answer = made.continuation_scores

        def disturbed(pairs):
            for file, act in ((kill_once, lambda: os.kill(os.getpid(), 9)), (slow_once, lambda: time.sleep(6))):
                try:
                    os.remove(file)  # only one worker succeeds
                except OSError:
                    continue
                act()
            return answer(pairs)

        made.continuation_scores = disturbed
        return made

    return load


def prompts():
    rng = random.Random(4)
    beginnings = [tuple(rng.choices(range(2, 1000), k=150)) for _ in range(4)]
    return [((*rng.choice(beginnings), *rng.choices(range(2, 1000), k=5)), tuple(rng.choices(range(2, 1000), k=3))) for _ in range(60)]


def test_a_killed_and_a_slow_worker_change_no_bit(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_scoring, "CHUNK_TOKENS", 600)
    torch.set_num_threads(1)
    expected = scorer().continuation_scores(prompts())
    contexts = [context for context, _ in prompts()[:12]]
    kill, slow = tmp_path / "kill", tmp_path / "slow"
    kill.touch()
    sharing = RayScorer(loader(kill_once=str(kill)), encoder(), max_seq_len=256, workers=2)
    seen = []
    assert sharing.continuation_scores(prompts(), lambda done, total: seen.append((done, total))) == expected
    assert not kill.exists() and sharing._deaths == 1 and seen[-1] == (60, 60)
    assert sharing.generate(contexts, 5, ()) == scorer().generate(contexts, 5, ())
    draws = [(context, f"{number}") for context in contexts for number in range(2)]
    assert sharing.sample(draws, 5, (), Sampling(temperature=1.5)) == scorer().sample(draws, 5, (), Sampling(temperature=1.5))
    sharing.close()
    slow.touch()
    sharing = RayScorer(loader(slow_once=str(slow)), encoder(), max_seq_len=256, workers=2)
    assert sharing.continuation_scores(prompts()) == expected
    assert not slow.exists() and min(sharing.chunks_done) < sum(sharing.chunks_done) / 4, "the chunks were shared out evenly, not by who was free"
    sharing.close()


def test_the_command_with_workers_writes_what_one_process_writes(tmp_path, capsys):
    data = evaluation_suite.write(tmp_path / "data")
    folder = tmp_path / "own"
    huggingface.export(model(), model().config, folder, tokenizer_json(), eos_id=0, pad_id=1)
    common = ["evaluate", "--model", str(folder), "--suite", "small", "--data", str(data), "--home", str(tmp_path / "home"), "--no-cache", "--json"]
    torch.set_num_threads(1)
    for workers in ("1", "2"):
        assert cli.main([*common, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    one, two = (json.loads((tmp_path / n / writing.SCORES).read_text()) for n in "12")
    assert one | {"run": 0} == two | {"run": 0} and two["run"]["asked"] == 50
    assert (tmp_path / "1" / writing.RESPONSES).read_bytes() == (tmp_path / "2" / writing.RESPONSES).read_bytes()
    assert cli.main([*common, "--workers", "99", "--out", str(tmp_path / "99")]) != 0
    assert "Asked for 99 scoring workers" in capsys.readouterr().err


def test_tasks_of_lm_eval_are_shared_out_among_workers_with_equal_results(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra test)")
    import small_lm_eval

    for name, value in small_lm_eval.OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_scoring, "CHUNK_TOKENS", 600)
    include, folder, data = small_lm_eval.write(tmp_path / "tasks"), small_lm_eval.model_folder(tmp_path / "own", "own"), tmp_path / "data"
    data.mkdir()
    (data / "tasks_lm.yaml").write_text(json.dumps({"icl_tasks": [{"lm_eval_task": name} for name in small_lm_eval.NAMES]}))
    made = []
    monkeypatch.setattr(ray_scoring.RayScorer, "close", lambda self, close=RayScorer.close: (made.append(self.chunks_done), close(self)))
    torch.set_num_threads(1)
    arguments = ["evaluate", "--model", str(folder), "--suite", str(data / "tasks_lm.yaml"), "--data", str(data), "--lm-eval-include", str(include)]
    for workers in ("1", "2"):
        out = ["--home", str(tmp_path / "home"), "--no-cache", "--json", "--workers", workers, "--out", str(tmp_path / workers)]
        assert cli.main([*arguments, *out]) == 0
    one, two = (json.loads((tmp_path / n / writing.SCORES).read_text()) for n in "12")
    assert one | {"run": 0} == two | {"run": 0} and len(one["lm_eval"]) == 4 and two["run"]["asked"] == one["run"]["asked"] > 40
    assert (tmp_path / "1" / writing.RESPONSES).read_bytes() == (tmp_path / "2" / writing.RESPONSES).read_bytes()
    (chunks,) = made
    assert min(chunks) > 2, "one worker answered everything"
