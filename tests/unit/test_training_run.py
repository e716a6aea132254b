"""What a training process does to its folder: resumes exactly, survives SIGKILL, never shares the folder, says why it stopped."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import pytest
import training_parts as parts

from jobs.contract import MoelineError
from jobs.services import ray, training, training_data, training_order
from jobs.services.training import TrainingRun
from models.mixture import Mixture, Phase
from models.unigram import predicted_tokens, unigram_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return training_data.write(parts.sequences(folder), folder / "files")


def run_of(data, folder, **changes) -> TrainingRun:
    keep = changes.pop("keep_checkpoints", 2)
    return TrainingRun(folder=str(folder), data=data.folder, config=parts.small_train(**changes), keep_checkpoints=keep)


def test_sequences_are_written_in_one_order_whatever_the_order_of_rows(data, tmp_path):
    again = training_data.write(parts.sequences(tmp_path), tmp_path / "files")
    assert again.digest == data.digest
    assert data.sequences == {"train": 300, "held_out": 20}
    tokens, boundaries, n_tokens = training_data.read_arrays(data.folder, "train")
    assert tokens.shape == (300, parts.SEQ_LEN)
    assert len(boundaries) == len(n_tokens) == 300
    assert all(row[0] == 0 and len(row) == 2 for row in boundaries)
    few = training_data.read_arrays(data.folder, "held_out", spread=5)
    assert np.array_equal(few[0], training_data.read_arrays(data.folder, "held_out")[0][[0, 5, 10, 14, 19]])


MIXED, APART = (("code", "code"), ("code", "docs")), (("code", "code"), ("docs", "docs"), ("web", "web"))
HALF_EACH = Mixture(phases=(Phase(weights=(("code", 1.0), ("docs", 1.0))),), max_epochs=(("docs", 3.0),))


def test_pieces_and_keys_say_where_every_token_comes_from(tmp_path):
    table = parts.sequences(tmp_path, sources=MIXED)
    found = training_data.write(table, tmp_path / "files")
    rows = sorted(table.to_table().to_pylist(), key=lambda row: (row["interval"], row["sequence_id"]))
    assert (found.sources, found.intervals) == (("code", "docs"), ("2026-11-01", "2026-11-02"))
    for split in ("train", "held_out"):
        mine = [row for row in rows if row["split"] == split]
        expected = [
            (number, source, end - start)
            for number, row in enumerate(mine)
            for source, start, end in zip(row["sources"], row["boundaries"], [*row["boundaries"][1:], row["n_tokens"]], strict=True)
        ]
        pieces = training_data.pieces(found.folder, split)
        assert [(s, found.sources[n], t) for s, n, t in zip(pieces.sequence, pieces.source, pieces.tokens, strict=True)] == expected
        keys = training_data.keys(found.folder, split)
        assert [(found.intervals[day], number) for day, number in keys] == [(row["interval"], row["sequence_id"]) for row in mine]


def test_tokens_read_per_source_are_those_of_the_batches(tmp_path):
    for name, sources, mixture in (("plain", MIXED, Mixture()), ("mixture", APART, HALF_EACH)):
        table = parts.sequences(tmp_path / name, sources=sources)
        found = training_data.write(table, tmp_path / name / "files")
        order = training_order.order_of(parts.small_train(mixture=mixture), found)
        rows = sorted((row for row in table.to_table().to_pylist() if row["split"] == "train"), key=lambda row: (row["interval"], row["sequence_id"]))
        read = dict.fromkeys(found.sources, 0)
        for step in range(40):
            for index in order.batch(step):
                ends = [*rows[index]["boundaries"][1:], rows[index]["n_tokens"]]
                for source, start, end in zip(rows[index]["sources"], rows[index]["boundaries"], ends, strict=True):
                    read[source] += end - start
        counted = training_order.read_per_source(order, found, 40)
        assert {source: count["tokens"] for source, count in counted.items()} == read
        assert sum(read.values()) == 40 * 8 * parts.SEQ_LEN
        if mixture:
            assert read["code"] == read["docs"] and counted["docs"]["epochs"] == 1.6 and read["web"] == 0


def test_a_mixture_on_mixed_sequences_says_what_to_set(tmp_path):
    found = training_data.write(parts.sequences(tmp_path, sources=MIXED), tmp_path / "files")
    with pytest.raises(ValueError, match=r"150 of 300 hold several. Set separate_sources=True in the recipe's PackConfig"):
        training_order.order_of(parts.small_train(mixture=HALF_EACH), found)


def test_a_run_on_a_mixture_cut_in_the_middle_ends_as_if_undisturbed(tmp_path, monkeypatch):
    from models.train_loop import Trainer

    found = training_data.write(parts.sequences(tmp_path, sources=APART), tmp_path / "files")
    whole, cut = (TrainingRun.from_json(run_of(found, tmp_path / name, mixture=HALF_EACH).to_json()) for name in ("whole", "cut"))
    assert whole.config.mixture == HALF_EACH
    training.train_all([whole], threads=1)
    step = Trainer.step

    def interrupted(trainer):
        if trainer.step_number == 25:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train_all([cut], threads=1)
    monkeypatch.undo()
    training.train_all([cut], threads=1)
    expected, resumed = training.result_of(whole.folder), training.result_of(cut.folder)
    assert resumed["resumed_from_step"] == 20
    assert resumed["sha256"] == expected["sha256"]


def test_a_split_without_sequences_is_named(tmp_path):
    with pytest.raises(MoelineError, match="no held_out sequences"):
        training_data.write(parts.sequences(tmp_path, held_out=0), tmp_path / "files")


def test_unigram_loss_counts_only_predicted_tokens():
    tokens = np.array([[5, 1, 1, 2, 9, 9]])
    found = predicted_tokens(tokens, [np.array([0, 3])], np.array([5]))
    assert found.tolist() == [1, 1, 9]  # not the first of a document, not padding
    assert unigram_loss(np.array([0.0, 3.0, 0.0]), np.array([1])) == pytest.approx(-np.log(4 / 6))
    with pytest.raises(ValueError, match="no token"):
        unigram_loss(np.ones(3), np.array([], dtype=int))


def test_an_interrupted_run_ends_as_if_undisturbed(data, tmp_path, monkeypatch):
    from models.train_loop import Trainer

    whole, cut = run_of(data, tmp_path / "whole"), run_of(data, tmp_path / "cut")
    training.train_all([whole], threads=1)
    step, last = Trainer.step, int.from_bytes(os.urandom(1)) % 28 + 11

    def interrupted(trainer):
        if trainer.step_number == last:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train_all([cut], threads=1)
    monkeypatch.undo()
    assert training.result_of(cut.folder) is None
    training.train_all([cut], threads=1)
    expected, found = training.result_of(whole.folder), training.result_of(cut.folder)
    assert found["resumed_from_step"] == last // 10 * 10
    assert {k: found[k] for k in ("sha256", "held_out_loss", "loss")} == {k: expected[k] for k in ("sha256", "held_out_loss", "loss")}, f"cut at step {last}"
    steps = [line["step"] for line in training.read_metrics(tmp_path / "cut" / training.METRICS) if line["event"] == "step"]
    assert steps == list(range(1, 41))  # every step once, also those trained twice


def test_repeated_spikes_roll_back_without_the_batches_at_fault_and_a_restart_leaves_them_out_too(data, tmp_path, monkeypatch):
    from models import checkpoint
    from models.guards import RepeatedSpikes
    from models.train_loop import Trainer

    step, batches, trained = Trainer.step, [21, 22], []

    def spiking(trainer):
        if trainer.step_number == 35 and trainer.guard.excluded and "cut" not in trained:
            trained.append("cut")
            raise KeyboardInterrupt
        if trainer.step_number == 33 and not trainer.guard.excluded:  # a checkpoint after the first of them is there: step 30
            raise RepeatedSpikes(batches, batches, 1)
        trained.append(trainer.step_number)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", spiking)
    run = run_of(data, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        training.train_all([run], threads=1)
    training.train_all([run], threads=1)
    found = training.result_of(run.folder)
    assert found["steps"] == 40 and found["skipped_steps"] == 2
    assert trained[33:34] == [20], "from the checkpoint before the first of them"
    assert not set(batches) & set(trained[33:])
    steps = [line["step"] for line in training.read_metrics(tmp_path / "run" / training.METRICS) if line["event"] == "step"]
    assert steps == [n for n in range(1, 41) if n - 1 not in batches]
    assert checkpoint.read(tmp_path / "run" / found["checkpoint"])[1]["guard"]["excluded"] == batches


def test_a_finished_run_is_left_as_it_is(data, tmp_path):
    run = run_of(data, tmp_path / "run", keep_checkpoints=0)
    training.train_all([run], threads=1)
    before = (tmp_path / "run" / training.RESULT).stat().st_mtime_ns
    training.train_all([run], threads=1)
    assert (tmp_path / "run" / training.RESULT).stat().st_mtime_ns == before
    assert not list((tmp_path / "run").glob("step-*"))  # asked for none


def test_a_second_writer_waits_for_the_first(tmp_path):
    order = []
    with training.single_writer(tmp_path):
        second = threading.Thread(target=lambda: order.append(training.single_writer(tmp_path).__enter__() or "second"))
        second.start()
        time.sleep(1.0)
        order.append("first")
    second.join(timeout=10)
    assert order == ["first", "second"]


def test_a_writer_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STALLED_SECONDS", 0.2)
    with training.single_writer(tmp_path), pytest.raises(MoelineError, match=rf"pid {os.getpid()} on .* has written nothing"), training.single_writer(tmp_path):
        pytest.fail("two writers")


def test_an_error_no_retry_can_mend_is_recorded_and_raised_by_the_launcher(data, tmp_path):
    run = run_of(data, tmp_path / "run", learning_rate=float("inf"), keep_checkpoints=0)
    training.train_all([run], threads=1)
    with pytest.raises(MoelineError, match=r"Training stopped: .*not finite"):
        training.result_of(run.folder)


def test_half_written_lines_are_dropped():
    assert training.parsed('{"event": "step", "step": 1}\n{"event": "st') == [{"event": "step", "step": 1}]


def test_a_run_survives_its_json_form(data, tmp_path):
    run = run_of(data, tmp_path)
    assert TrainingRun.from_json(run.to_json()) == run
    json.loads(run.to_json())


def test_runs_are_shared_out_by_work(data, tmp_path):
    runs = [run_of(data, tmp_path / str(n), tokens=n * 8 * parts.SEQ_LEN) for n in (1, 2, 3, 10)]
    shares = ray.shared_out(runs, 2)
    assert sorted(sum(r.config.steps for r in share) for share in shares) == [6, 10]
    assert ray.shared_out(runs[:1], 2)[1] == []


def test_a_platform_that_does_not_answer_is_said_at_once(env, data, tmp_path):
    env.home.mkdir(parents=True)
    (env.home / "platform.json").write_text(json.dumps({"addresses": {"ray_address": "127.0.0.1:9"}}))
    began = time.monotonic()
    with pytest.raises(MoelineError, match=r"Ray head at 127.0.0.1:9 does not answer"):
        ray.train(env, [run_of(data, tmp_path)], name="x", resources=env.stage_resources("train"), processes=1, scratch=str(tmp_path))
    assert time.monotonic() - began < 10
