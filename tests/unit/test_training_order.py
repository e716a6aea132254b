"""The written training order: what the function says, from any step, the same bytes twice, and proof for a resumed run."""

from __future__ import annotations

import json

import pytest
import training_parts as parts

from jobs import cli
from jobs.contract import MoelineError
from jobs.services import order_file, training_data, training_order
from models.mixture import Mixture, Phase
from models.train_loop import LoopConfig, Trainer, new_model

CONFIG = parts.small_train(mixture=Mixture(phases=(Phase(weights=(("code", 3.0), ("docs", 1.0))),)))
ABOUT = {"sequences": "sequences@7", "mixture": {}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return training_data.write(parts.sequences(folder, sources=(("code", "code"), ("docs", "docs"))), folder / "files")


def expected(data, first: int, last: int) -> list[dict]:
    order, keys = training_order.order_of(CONFIG, data), training_data.keys(data.folder, "train")
    return [{"step": s, "interval": data.intervals[keys[i][0]], "sequence_id": keys[i][1]} for s in range(first, last) for i in order.batch(s)]


@pytest.mark.parametrize("group_rows", [8, 24, 1 << 16])
def test_any_steps_are_read_as_the_function_gives_them_and_twice_the_same_bytes(data, tmp_path, monkeypatch, group_rows):
    monkeypatch.setattr(order_file, "_GROUP_ROWS", group_rows)
    one, two = (order_file.write(tmp_path / n, training_order.order_of(CONFIG, data), data, 40, ABOUT) for n in "ab")
    assert one.read_bytes() == two.read_bytes()
    for first, count in ((0, 40), (0, 1), (17, 5), (38, 9)):
        assert order_file.read(one, first, count) == expected(data, first, min(40, first + count))
    assert [file.name for file in one.parent.iterdir()] == [order_file.NAME]
    with pytest.raises(MoelineError, match="the steps 0 to 39"):
        order_file.read(one, 40, 1)


def test_a_run_keeps_its_order_and_another_is_refused(data, tmp_path):
    file = order_file.write(tmp_path, training_order.order_of(CONFIG, data), data, 40, ABOUT)
    before = file.stat().st_mtime_ns
    order_file.write(tmp_path, training_order.order_of(CONFIG, data), data, 40, ABOUT)
    assert file.stat().st_mtime_ns == before
    with pytest.raises(MoelineError, match="holds another order"):
        order_file.write(tmp_path, training_order.order_of(parts.small_train(), data), data, 40, ABOUT)


def test_a_checkpoint_of_another_order_is_refused(data, tmp_path):
    loop = LoopConfig(steps=40, batch_sequences=8, learning_rate=1e-2)
    sequences, model = training_data.read(data.folder, "train"), new_model(CONFIG.model, seed=1)
    info = Trainer(model, loop, sequences, training_order.order_of(CONFIG, data)).save(tmp_path)
    Trainer(model, loop, sequences, training_order.order_of(CONFIG, data)).load(info.path)
    with pytest.raises(ValueError, match="read its sequences in order"):
        Trainer(model, loop, sequences).load(info.path)


def test_the_command_shows_steps_of_a_run_and_names_the_runs_there_are(data, env, capsys):
    order_file.write(env.artifacts / "checkpoints" / ("c" * 32), training_order.order_of(CONFIG, data), data, 40, ABOUT)
    assert cli.main(["order", "--run", "c" * 8, "--from-step", "30", "--steps", "2", "--json", "--home", str(env.home)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sequences"], len(found["reads"])) == ("sequences@7", 16)
    assert {row["step"] for row in found["reads"]} == {30, 31}
    assert cli.main(["order", "--run", "dddddd", "--home", str(env.home)]) == 1
    assert f"means 0 of 1 trainings with a written order ({'c' * 32})" in capsys.readouterr().err
