"""One local Spark session for all stage tests, and the tools a stage gets, kept in a temporary folder."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jobs.environment import Environment

logging.getLogger("py4j").setLevel(logging.WARNING)  # it says goodbye after pytest has closed the output


@dataclass
class FolderTools:
    """jobs.contract.Tools over one folder, for one process."""

    root: Path
    session: Any = None
    interval: str | None = "2026-11-01"
    recipe: str = "tiny"
    run_key: str = "0" * 32
    gauntlet_data: str | None = None
    reported: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def scratch(self) -> str:
        return self.artifact_dir("scratch")

    @property
    def spark(self) -> Any:
        return self.session

    def materialise(self, frame: Any) -> Any:
        path = str(Path(self.scratch) / uuid.uuid4().hex)
        frame.write.parquet(path)
        return self.session.read.schema(frame.schema).parquet(path)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.reported.append((done, total, text))

    def artifact_dir(self, name: str) -> str:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def put_once(self, name: str, make: Callable[[], bytes]) -> bytes:
        file = self.root / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(make())
        return file.read_bytes()

    def cost_so_far(self) -> float:
        return 0.0

    def price(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        return 0.0


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local session with the platform's own settings; its JVM ends with the tests."""
    from jobs.services.spark import session, spark_environment

    home = tmp_path_factory.mktemp("spark")
    env = Environment.load("local", home=home)
    before = {name: os.environ.get(name) for name in spark_environment(env)}
    made = session(env, "stage-tests")
    jvm = made.sparkContext._gateway.proc  # stop() leaves it running until this process ends
    yield made
    made.stop()
    jvm.stdin.close()
    jvm.wait(timeout=30)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def tools(spark: Any, tmp_path: Path) -> FolderTools:
    return FolderTools(tmp_path / "tools", spark)
