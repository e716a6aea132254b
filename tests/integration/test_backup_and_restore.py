"""The running platform is copied while Airflow prepares a day; another home goes on from the copy: the day is finished there, nothing else is done again."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_platform import still_running, until
from whole_job import RECIPE, WholeJob

from jobs import backup, launch, registered, restore, sample_data
from jobs.config import PREPARE_STAGES
from jobs.contract import TableVersion
from jobs.environment import Environment
from jobs.services import backup_folder, delta, mlflow, results
from jobs.services import platform as local

pytestmark = pytest.mark.integration

OTHERS_DAY, OTHERS_RECIPE = "2026-01-06", "tiny"  # another recipe's day: the whole job's corpus stays what it is
FIRST_VERSION = 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path (Unix sockets), where PostgreSQL as root may step down."""
    folder = Path(tempfile.mkdtemp(prefix="moeline-"))
    yield folder
    if not os.environ.get("MOELINE_TEST_KEEP"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(1500)
def test_another_home_goes_on_from_a_copy_of_the_running_platform(whole_job: WholeJob, place: Path) -> None:
    env, new = whole_job.env, Environment.load("local", place / "home")
    folder, went_on = copied_while_a_day_is_prepared(env, place / "backups")
    told = restore.restore(new, folder)
    assert sorted(told["databases"]) == ["airflow", "mlflow"]
    same_tables(env, new, told["tables"])
    assert names_of_the_old_home(env, new) == set()
    try:
        began = time.monotonic()
        addresses = local.up(new, echo=lambda _: None)["addresses"]
        seconds = {"up": time.monotonic() - began}
        assert addresses["airflow_url"] != env.platform["airflow_url"] and addresses["mlflow_uri"] != env.platform["mlflow_uri"]
        loads_and_verifies(env, new)
        began = time.monotonic()
        again = launch.run(new, RECIPE, 2, echo=lambda _: None)
        seconds["run"] = time.monotonic() - began
        assert again["computed"] == 0 and again["cost_usd"] == 0
        assert {s["run_key"] for s in again["stages"]} <= {s["run_key"] for s in whole_job.outcome["stages"]}
        began = time.monotonic()
        launch.backfill(new, [OTHERS_DAY], recipe=OTHERS_RECIPE, echo=lambda _: None)
        seconds["the rest of the day"] = time.monotonic() - began
        went_on.join(300)
        assert prepared(new) == prepared(env), "the day that was being prepared ends in both homes, with the same rows"
    finally:
        local.down(new, echo=lambda _: None)
    assert still_running(new.home) == []
    print({"backup": told["bytes"], "restore_seconds": told["seconds"], **seconds})


def copied_while_a_day_is_prepared(env: Environment, to: Path) -> tuple[Path, threading.Thread]:
    """(the backup, a thread that ends when the day is done): taken after the day's first stage, verified."""
    sample_data.write(env.landing, [OTHERS_DAY], target_bytes=2_000_000)  # enough for a vocabulary of 4,096
    said: list[str] = []
    thread = threading.Thread(target=lambda: launch.backfill(env, [OTHERS_DAY], recipe=OTHERS_RECIPE, echo=said.append), daemon=True)
    thread.start()
    until(lambda: any("clean: started" in line for line in said), seconds=240, what="the second stage of the day")
    made = backup.backup(env, to)
    assert backup.verify(Path(made["folder"]))["verified"]
    assert len([r for r in results.of_stage(env, PREPARE_STAGES[-1]) if r.interval == OTHERS_DAY]) == 0, "it was taken while the day was being prepared"
    dumps = {file.name: file.stat().st_size for _, file in backup_folder.regular_files(Path(made["folder"]) / "databases")}
    print(f"backup: {made['seconds']} s, {made['bytes']:,} bytes, {made['n_files']} files, of them {dumps}")
    return Path(made["folder"]), thread


def same_tables(env: Environment, new: Environment, tables: dict[str, dict[str, int]]) -> None:
    for name, said in tables.items():
        version = TableVersion(name, said["version"])
        ours, theirs = (delta.dataset(one, version).to_table() for one in (env, new))
        assert ours.num_rows == theirs.num_rows == said["rows"]
        assert sorted(map(str, ours.to_pylist())) == sorted(map(str, theirs.to_pylist())), name


def names_of_the_old_home(env: Environment, new: Environment) -> set[str]:
    """Files of the new home that name the old one, but for a remark in a table's first commit and one of MLflow in a (signed) model folder."""
    files = [*backup_folder.regular_files(new.home)]
    found = {name for name, file in files if str(env.home).encode() in file.read_bytes()}
    return {name for name in found if not name.endswith((f"_delta_log/{FIRST_VERSION:020}.json", "/MLmodel"))}


def loads_and_verifies(env: Environment, new: Environment) -> None:
    import mlflow as client
    import pandas as pd

    for row in delta.rows(env, "registrations"):
        known = results.find(new, "register", row["run_key"])
        if known is None:
            continue
        with registered.opened(new, row["model_name"], row["model_version"]) as (folder, verified):
            assert verified.files > 3 and len(list(folder.rglob("*.safetensors"))) > 0
            model = client.pyfunc.load_model(str(folder), model_config={"public_key_file": str(new.home / "keys")})
            assert len(model.predict(pd.DataFrame({"prompt": ["def f("]}), params={"max_new_tokens": 2})) == 1
    theirs, ours = (mlflow.champion(mlflow.client(one), row["model_name"]) for one in (new, env))
    assert (theirs and theirs.version) == (ours and ours.version)


def prepared(env: Environment) -> dict[str, object]:
    """What the day's stages recorded, and the sequences they packed."""
    found = {r.stage: (r.run_key, sorted(r.outputs)) for stage in PREPARE_STAGES for r in results.of_stage(env, stage) if r.interval == OTHERS_DAY}
    assert set(found) == set(PREPARE_STAGES)
    packed = next(r for r in results.of_stage(env, "pack") if r.interval == OTHERS_DAY)
    rows = delta.dataset(env, packed.table("sequences"), where_in=[OTHERS_DAY]).to_table().to_pylist()
    return {**found, "sequences": sorted(map(str, rows))}
