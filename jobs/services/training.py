"""What runs inside a training process: one run or several after another, each in its own folder, resumable after SIGKILL at any moment.

A run's folder holds ``step-*`` checkpoints, ``metrics.jsonl`` (one line per step) and, at the very end, ``result.json``. It is the only
channel to whoever launched the process, so it survives both of them. One process writes to a folder at a time.
Change here: what a run records, when it checkpoints. Not here: the optimiser (models/train_loop.py), launching (ray.py), what stops a run
early (run_control.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from jobs.config import TrainConfig
from jobs.contract import MoelineError
from jobs.services import checkpoint_writer, run_control, telemetry, worker_group
from jobs.services.checkpoint_writer import CheckpointFailed
from jobs.services.results import write_whole
from jobs.services.run_control import Allowance, Control
from models.config import ModelConfig
from models.mixture import Mixture

METRICS, RESULT, ERROR, LOCK = "metrics.jsonl", "result.json", "error.json", "writer.lock"
ENDED = "ended-at-step-"  # results of a run that was reopened
LAST_STEPS = 20  # the training loss reported is the mean of so many last steps
STALLED_SECONDS = 120.0  # another writer that wrote nothing for so long is taken to hang


@dataclass(frozen=True)
class TrainingRun:
    """One training to do: ``config`` on the sequences in ``data`` (training_data.write), in ``folder``. ``keep_checkpoints`` 0: train
    without any (a proxy of seconds). ``suite``: a file of questions to answer at the end (see suite_accuracy), or empty.
    ``timed_steps``: do only so many steps and report how long one takes (``step_seconds``, ``held_out_seconds``); nothing is learnt.
    ``allowance``: what it costs and may cost; it ends early with a usable model rather than above it. ``peak_flops``: FLOP/s of the machine it
    gets, for MFU (None: measured when it starts)."""

    folder: str
    data: str
    config: TrainConfig
    keep_checkpoints: int = 2
    suite: str = ""
    timed_steps: int = 0
    allowance: Allowance | None = None
    peak_flops: float | None = None

    @property
    def cost(self) -> float:
        """Training FLOPs, to share runs out over processes."""
        return self.config.model.flops_per_token * self.config.tokens_per_step * self.config.steps

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainingRun:
        raw = json.loads(text)
        allowance = Allowance(**raw["allowance"]) if raw.get("allowance") else None
        return cls(**{**raw, "config": train_config(raw["config"]), "allowance": allowance})


def train_config(raw: Mapping[str, Any]) -> TrainConfig:
    """TrainConfig from its plain JSON form."""
    mixture = {"mixture": Mixture.from_json(raw["mixture"])} if "mixture" in raw else {}
    return TrainConfig(**{**raw, "model": ModelConfig(**raw["model"]), **mixture})


def result_of(folder: str | Path) -> dict[str, Any] | None:
    """What a finished run reached, or None while it is not finished. Raises MoelineError when it ended in an error no retry can mend."""
    folder = Path(folder)
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text())
    if (folder / ERROR).is_file():
        raise MoelineError(json.loads((folder / ERROR).read_text())["error"])
    return None


def reopen(folder: str | Path, limit_usd: float) -> bool:
    """Let a run that ended early for its budget go on, now that it may cost ``limit_usd`` in all; whether there was such a run.

    The checkpoint it ended with stays as long as the folder: a table names it.
    """
    if not (Path(folder) / RESULT).is_file():
        return False
    ended = json.loads((Path(folder) / RESULT).read_text())
    if ended.get("ended_early") != run_control.BUDGET or ended["limit_usd"] >= limit_usd:
        return False
    os.replace(Path(folder) / RESULT, Path(folder) / f"{ENDED}{ended['steps']}.json")
    return True


def _named_elsewhere(folder: Path) -> set[str]:
    """Checkpoints that the run ended with before it was reopened."""
    return {str(json.loads(file.read_text()).get("checkpoint")) for file in folder.glob(f"{ENDED}*.json")}


def train_all(runs: list[TrainingRun], *, threads: int) -> bool:
    """Do ``runs`` one after another in this process with ``threads`` threads; finished ones are left as they are.

    Returns False when it was asked to stop before the end (SIGTERM, a request in a run's folder): what was done is in a checkpoint.
    An error that a retry cannot mend (bad data, divergence) is written to the run's folder and ends this process's work; anything
    else is raised, and a later call continues from the last checkpoint.
    """
    import torch

    torch.set_num_threads(threads)
    team = worker_group.here()
    for run in runs:
        try:
            with team.keeping(single_writer(Path(run.folder))):
                if team.agreed((Path(run.folder) / RESULT).is_file):
                    continue
                result = _time(run) if run.timed_steps else _train(run)
                if result is None:
                    return False
                if team.first:
                    write_whole(Path(run.folder) / RESULT, json.dumps(result).encode())
        except (ValueError, FloatingPointError) as error:
            _end_with(run.folder, f"Training stopped: {error}")
            return True
        except (CheckpointFailed, OSError) as error:
            _end_with(run.folder, f"Training stopped: {error} What was written before is whole; the stage run again continues from there.")
            return True
    return True


def _end_with(folder: str, error: str) -> None:
    """Leave ``error`` for whoever launched the process; raises it where the folder takes no file any more."""
    try:
        write_whole(Path(folder) / ERROR, json.dumps({"error": error}).encode())
    except OSError:
        raise MoelineError(error) from None


@contextmanager
def single_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. While another process holds it and makes progress, wait for it (it may finish the work).

    The kernel drops the lock when its holder dies, however it dies. Raises MoelineError when the holder hangs. The lock is flock:
    the folder must lie on a file system where that works across the machines of the cluster (local disk, NFSv4).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as handle:
        since = time.time()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                metrics = folder / METRICS
                alive = max(since, metrics.stat().st_mtime if metrics.exists() else 0.0)
                if time.time() - alive > STALLED_SECONDS:
                    handle.seek(0)
                    raise MoelineError(
                        f"Another process ({handle.read().strip() or 'unknown'}) holds {folder} and has written nothing for {STALLED_SECONDS:.0f} s. "
                        "Stop that process and run the stage again."
                    ) from None
                time.sleep(0.5)
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {os.uname().nodename}")
        handle.flush()
        yield


def _time(run: TrainingRun) -> dict[str, Any]:
    """Median seconds of a step at this process's threads (the first ones warm up), and of the held-out loss over all its sequences."""
    from jobs.services import training_data

    trainer = _new_trainer(run.config, run.data)
    seconds = [trainer.step().seconds for _ in range(min(run.timed_steps, run.config.steps))]
    wanted = run.config.held_out_sequences
    some = min(wanted, run.config.batch_sequences * 4)
    started = time.perf_counter()
    trainer.held_out_loss(training_data.read(run.data, "held_out", spread=some), some)
    return {"step_seconds": statistics.median(seconds[len(seconds) // 4 :]), "held_out_seconds": (time.perf_counter() - started) * wanted / some}


def _train(run: TrainingRun) -> dict[str, Any] | None:
    """Train to the end, or as far as the money goes, from the newest valid checkpoint; the result, or None when asked to stop before."""
    from models.guards import RepeatedSpikes

    trainer = None
    while True:
        try:
            return _train_from(run, trainer)
        except RepeatedSpikes as spikes:
            trainer = _rolled_back(run, spikes)


def _rolled_back(run: TrainingRun, spikes: Any) -> Any:
    """A trainer that goes on from before the batches at fault, without them. A restart will do the same: its state is the newest checkpoint."""

    folder, team, trainer = Path(run.folder), worker_group.here(), _new_trainer(run.config, run.data)
    if not run.keep_checkpoints:
        trainer.roll_back(None, spikes)
        return trainer
    for later in folder.glob("step-*") if team.first else ():
        if int(later.name.removeprefix("step-")) > spikes.before:
            shutil.rmtree(later)
    trainer.roll_back(team.newest(folder), spikes)
    trainer.save(folder)
    return trainer


def _resumed(run: TrainingRun) -> tuple[Any, Path | None]:
    """(trainer, the checkpoint it continues from)"""
    trainer = _new_trainer(run.config, run.data)
    resume = worker_group.here().newest(Path(run.folder)) if run.keep_checkpoints else None
    if resume is not None:
        trainer.load(resume)
    return trainer, resume


def _train_from(run: TrainingRun, trainer: Any) -> dict[str, Any] | None:
    from models import checkpoint

    folder, resume, team = Path(run.folder), None, worker_group.here()
    if trainer is None:
        trainer, resume = _resumed(run)
    began_at = trainer.step_number
    saving = team.writer(folder, run.keep_checkpoints, _named_elsewhere(folder)) if run.keep_checkpoints else nullcontext()
    with team.keeping(_metrics_from(run, began_at)) as lines, run_control.caught_sigterm() as signalled, saving as writer:
        stopped = _steps(run, trainer, writer, _control(run, signalled), lines)
        final = resume if began_at == trainer.step_number else None
        if writer is not None and final is None and trainer.step_number:
            final = _last_checkpoint(team, writer, trainer)
    if stopped == run_control.STOP:
        return None
    if writer is not None and team.first:
        checkpoint.prune(folder, 1, named=writer.named)
    early = {} if stopped is None or run.allowance is None else {"ended_early": stopped, "limit_usd": run.allowance.limit_usd}
    if not trainer.step_number:
        return {**early, "steps": 0}
    return {
        **_summary(folder / METRICS), **_held_out(run, trainer), "resumed_from_step": began_at, "skipped_steps": trainer.skipped_steps,
        "tokens": trainer.tokens, "steps": trainer.step_number, "sequences_seen": trainer.step_number * run.config.batch_sequences,
        "checkpoint": final.name if final else None, "sha256": checkpoint.verify(final) if final else None,
        **(suite_accuracy(trainer.model, run.suite) if run.suite else {}), **early,
    }  # fmt: skip


def _control(run: TrainingRun, signalled: Callable[[], bool]) -> Control:
    from jobs.services import training_data

    held_out = min(run.config.held_out_sequences, training_data.load(run.data).sequences["held_out"])
    control = Control(Path(run.folder), run.allowance, finishing_steps=held_out / run.config.batch_sequences, signalled=signalled)
    for line in read_metrics(Path(run.folder) / METRICS):
        if line["event"] == "step":
            control.took(line["seconds"])
    return control


def _steps(run: TrainingRun, trainer: Any, writer: Any, control: Control, lines: TextIO) -> str | None:
    """Train until the end, or until ``control`` says why not."""

    def tell(line: Mapping[str, Any]) -> None:
        print(json.dumps(line), file=lines, flush=True)

    peak = _started(run, trainer.step_number, tell)
    notice, team = run_control.PreemptionNotice(), worker_group.here()
    while not trainer.finished:
        if stopped := team.agreed(control.why_stop):
            return stopped
        step = trainer.step()
        control.took(step.seconds)
        cost = {"cost_usd": run.allowance.cost(time.time())} if run.allowance else {}
        tell({"event": "step", "at": time.time(), **asdict(step), **({"mfu": step.flops / step.seconds / peak} if peak else {}), **cost})
        if writer is None:
            continue
        for written in writer.finished():
            checkpoint_writer.told(written, tell)
            control.saving_seconds = written.seconds
        preempted = notice.is_new()
        if preempted or writer.wanted or (step.step % run.config.checkpoint_every_steps == 0 and not trainer.finished):
            writer.save(trainer.contents())
            if preempted:  # nobody knows how long this machine still lives
                writer.wait()
    return None


def _started(run: TrainingRun, step: int, tell: Callable[[Mapping[str, Any]], None]) -> float | None:
    """Say that training begins; FLOP/s of all workers (None for a proxy: nobody asks)."""
    peak = run.peak_flops or (telemetry.peak_here(run.config.precision) if run.keep_checkpoints else None)
    peak = peak and peak * run.config.workers
    tell({"event": "started", "at": time.time(), "step": step, "steps": run.config.steps, "peak_flops": peak})
    return peak


def _last_checkpoint(team: worker_group.Alone, writer: Any, trainer: Any) -> Path:
    """The checkpoint of now, on disk. Tried again where the disk refuses; raises CheckpointFailed when it goes on refusing."""
    while True:
        team.save_whole(writer, trainer)
        path = writer.wait()
        if path is not None and not writer.wanted:
            return path


def _held_out(run: TrainingRun, trainer: Any) -> dict[str, Any]:
    from jobs.services import training_data

    started, n = time.perf_counter(), run.config.held_out_sequences
    loss, n_predicted = trainer.held_out_loss(training_data.read(run.data, "held_out", spread=n), n)
    return {"held_out_loss": loss, "held_out_tokens": n_predicted, "held_out_seconds": time.perf_counter() - started}


def suite_accuracy(model: Any, file: str) -> dict[str, Any]:
    """Mean accuracy of ``model`` on the questions in ``file``: JSON with ``tokenizer`` (path) and ``load`` (arguments of
    gauntlet.suite.load, few items per task)."""
    from models.gauntlet import averages, suite
    from models.gauntlet.prompts import TokenizersEncoder
    from models.gauntlet.scoring import Scorer
    from models.kv_cache import KVCache

    started = time.perf_counter()
    questions = json.loads(Path(file).read_text())
    encoder = TokenizersEncoder.from_bytes(Path(questions["tokenizer"]).read_bytes())
    benchmarks = suite.load(**questions["load"])
    scores, _ = suite.evaluate(benchmarks, Scorer(model.eval(), encoder, max_seq_len=model.config.max_seq_len, cache_type=KVCache))
    overall = averages.overall(scores, expected=[b.task.label for b in benchmarks])
    return {"accuracy": overall.accuracy, "chance": overall.chance, "suite_items": overall.n, "suite_seconds": time.perf_counter() - started}


def _new_trainer(config: TrainConfig, data: str) -> Any:
    import torch

    from jobs.services import training_data, training_order

    torch.manual_seed(config.seed)  # checkpoints hold the generator's state: it must not depend on what this process did before
    model, kind = worker_group.here().model(config)
    return kind(model, config.loop_config(), training_data.read(data, "train"), training_order.order_of(config, training_data.load(data)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; none when it is not there yet."""
    return parsed(path.read_text()) if path.exists() else []


def parsed(text: str) -> list[dict[str, Any]]:
    """JSON lines; a line that a killed process left half-written is dropped."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@contextmanager
def _metrics_from(run: TrainingRun, step: int) -> Iterator[TextIO]:
    """The metrics file open for appending, cut back to ``step``: steps after the checkpoint are trained again and must count once."""
    path = Path(run.folder) / METRICS
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    with path.open("a") as lines:
        yield lines


def _summary(path: Path) -> dict[str, Any]:
    lines = read_metrics(path)
    steps = [line for line in lines if line["event"] == "step"]
    losses = [line["loss"] for line in steps if not line["skipped"]][-LAST_STEPS:]
    if not losses:
        raise ValueError("No step had a finite loss: lower learning_rate or train in fp32.")
    seconds = [line["seconds"] for line in steps]
    return {"loss": sum(losses) / len(losses), "seconds": sum(seconds), "median_step_seconds": statistics.median(seconds), **telemetry.summary(lines)}
