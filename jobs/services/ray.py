"""Ray Train: launch trainings on Ray (ray_connection.py), follow them, end them with this process.

Starting costs about 15 s on two quiet cores with a running head, 25 s without (measured); half of Ray Train's usual launch, because
only the worker imports torch: the driver and the controller get a plain backend. Change here: how training processes start.
Not here: what they do (training.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment, Resources
from jobs.services import ray_connection
from jobs.services.training import ERROR, METRICS, TrainingRun, parsed, result_of

MAX_RESTARTS = 2  # worker processes that may die (out of memory, a lost node) before the attempt fails
POLL_SECONDS = 0.5
EXCHANGE_SECONDS = 3600  # a worker that waits so long for the others gives up; Ray notices one that died at once

# Where Ray Train spends its launch beyond starting processes. Whoever runs a cluster may set them otherwise.
_TRAIN_SETTINGS = {
    "RAY_TRAIN_METRICS_ENABLED": "0",  # an exporter per process; our metrics go through metrics.jsonl
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how soon the end of training is noticed
}
_ONE_MACHINE_SETTINGS = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # no node is ever taken away, so nothing needs to watch for it


@dataclass
class Launch:
    """What one launch did. ``launch_seconds``: from asking to the first training step; None when nothing had to be launched."""

    results: list[dict[str, Any]] = field(default_factory=list)
    launch_seconds: float | None = None
    processes: int = 0


def train(
    env: Environment, runs: Sequence[TrainingRun], *, name: str, resources: Resources, processes: int, scratch: str,
    on_step: Callable[[int, dict[str, Any]], None] = lambda index, line: None, together: bool = False,
) -> Launch:  # fmt: skip
    """Do ``runs`` in ``processes`` Ray Train workers that share ``resources`` and the runs; returns when all are finished. ``together``: every
    run is done by all workers at once (worker_group.Group), each on a GPU or cores of its own.

    Runs with ``timed_steps`` come last, one at a time with the cores of all processes, as a training of its own would have them.
    Finished runs are not repeated, interrupted ones continue from their checkpoint; a worker that dies is restarted up to
    ``MAX_RESTARTS`` times. ``on_step(run index, metrics line)`` is called in this thread while they train. When this process ends,
    however it ends, Ray ends the workers. Raises MoelineError when a run cannot be finished.
    """
    for run in runs:
        (Path(run.folder) / ERROR).unlink(missing_ok=True)  # a new attempt may have been given what the last one lacked
    waiting = [run for run in runs if result_of(run.folder) is None]
    launch = Launch(processes=processes if together else min(processes, len(waiting)))
    if waiting:
        began = time.time()
        settings = _TRAIN_SETTINGS if env.services.get("ray_address") else {**_TRAIN_SETTINGS, **_ONE_MACHINE_SETTINGS}
        with ray_connection.connected(env, resources, settings):
            followers = [_Follower(i, Path(run.folder) / METRICS, began, on_step) for i, run in enumerate(runs)]
            there = _capacity(env, resources)
            _fit(waiting, there, name=name, resources=resources, processes=launch.processes, scratch=scratch, followers=followers, together=together)
        starts = [f.started_at for f in followers if f.started_at is not None]
        launch.launch_seconds = min(starts) - began if starts else None
    launch.results = [found for run in runs if (found := result_of(run.folder)) is not None]
    if len(launch.results) < len(runs):
        raise MoelineError(f"{len(runs) - len(launch.results)} of {len(runs)} trainings of {name} did not finish. Run the stage again: it continues.")
    return launch


def _capacity(env: Environment, resources: Resources) -> dict[str, float]:
    """CPUs and GPUs to count on: those that Ray has, or all of ``resources`` where Ray adds machines when they are asked for (``ray_autoscales``)."""
    import ray

    if env.services.get("ray_autoscales"):
        return {"CPU": resources.cores, "GPU": resources.gpus}
    return ray.cluster_resources()


def _fit(
    runs: Sequence[TrainingRun], there: Mapping[str, float], *, name: str, resources: Resources, processes: int, scratch: str,
    followers: Sequence[_Follower], together: bool,
) -> None:  # fmt: skip
    """Run the trainer in a thread and follow the metrics in this one."""
    from ray import cloudpickle
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    if together:
        _require_place(processes, there, resources)
    cores = max(1.0, min(resources.cores, there.get("CPU", 0.0)) / processes)
    per_worker = {"CPU": cores, **({"GPU": 1.0 if together else resources.gpus / processes} if resources.gpus else {})}
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker learns where the code lies before importing it
    shares = [[r.to_json() for r in runs]] * processes if together else _shares([r for r in runs if not r.timed_steps], processes)
    timed = [] if together else [r.to_json() for r in runs if r.timed_steps]
    trainer = DataParallelTrainer(
        _worker,
        train_loop_config={"repo": str(REPO), "threads": max(1, int(cores)), "shares": shares, "timed": timed},
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=resources.gpus > 0, resources_per_worker=per_worker),
        run_config=RunConfig(name=name, storage_path=str(Path(scratch) / "ray"), failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
        backend_config=_process_group(resources) if together else None,
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the main thread
            failure.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        for follower in followers:
            follower.poll()
    if failure:
        raise _explained(failure[0], name) from failure[0]


def _process_group(resources: Resources) -> Any:
    """Ray's torch.distributed set-up. Importing it brings torch into the driver, which nothing else needs."""
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if resources.gpus else "gloo", timeout_s=EXCHANGE_SECONDS)


def _require_place(workers: int, there: Mapping[str, float], resources: Resources) -> None:
    """Raise MoelineError when Ray can never place the workers of one training, instead of waiting for ever."""
    kind, found = ("GPU", min(resources.gpus, there.get("GPU", 0.0))) if resources.gpus else ("CPU", min(resources.cores, there.get("CPU", 0.0)))
    if found < workers:
        raise MoelineError(
            f"The recipe asks for {workers} workers of a {kind} each; Ray has {there.get(kind, 0.0):g} and stage train may use "
            f"{resources.gpus or resources.cores:g}. Set fewer workers in the recipe, or more in infra/env and on the cluster."
        )


def _worker(config: dict[str, Any]) -> None:
    """Body of a Ray Train worker: its share of the runs."""
    sys.path.insert(0, config["repo"])
    from ray.train import get_context

    from jobs.services import training

    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    training.train_all([training.TrainingRun.from_json(text) for text in config["shares"][rank]], threads=config["threads"])
    if config["timed"]:
        if size > 1:  # the other processes must be idle while one is timed
            from ray.train.collective import barrier

            barrier()
        if rank == 0:
            training.train_all([training.TrainingRun.from_json(text) for text in config["timed"]], threads=config["threads"] * size)


def _shares(runs: Sequence[TrainingRun], processes: int) -> list[list[str]]:
    return [[run.to_json() for run in share] for share in shared_out(runs, processes)]


def shared_out(runs: Sequence[TrainingRun], processes: int) -> list[list[TrainingRun]]:
    """Runs per process, the largest first to the process with the least work; empty shares are possible."""
    shares: list[list[TrainingRun]] = [[] for _ in range(processes)]
    for run in sorted(runs, key=lambda r: -r.cost):
        min(shares, key=lambda share: sum(r.cost for r in share)).append(run)
    return shares


def _explained(error: BaseException, name: str) -> MoelineError:
    """One line for a person out of Ray's nested errors."""
    causes = getattr(error, "worker_failures", None) or {0: error}
    cause = next(iter(causes.values()))
    text = str(getattr(cause, "cause", None) or cause).strip().splitlines()
    return MoelineError(f"Training {name} failed after {MAX_RESTARTS} restarts: {type(cause).__name__}: {text[-1] if text else 'no message'}")


class _Follower:
    """Reads the new lines of one run's metrics file, whoever writes it."""

    def __init__(self, index: int, file: Path, since: float, on_step: Callable[[int, dict[str, Any]], None]) -> None:
        self.index, self.file, self.since, self.on_step = index, file, since, on_step
        self.started_at: float | None = None
        self._seen = -1
        self._inode, self._offset = 0, 0

    def poll(self) -> None:
        """Report steps not reported before; a restarted run repeats steps under the same numbers and those stay silent."""
        with contextlib.suppress(FileNotFoundError), self.file.open("rb") as lines:
            if (inode := os.fstat(lines.fileno()).st_ino) != self._inode:  # a restarted run writes the file anew
                self._inode, self._offset = inode, 0
            lines.seek(self._offset)
            text = lines.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in parsed(whole.decode()):
                if line["event"] == "started" and self.started_at is None and line["at"] >= self.since:
                    self.started_at = line["at"]
                elif line["event"] == "step" and line["step"] > self._seen:
                    self._seen = line["step"]
                    self.on_step(self.index, line)


def flat_params(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as dotted names and plain values, for a tracker."""
    found: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(config)).items():
        found.update(flat_params(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found
