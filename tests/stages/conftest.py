"""One local Spark session for all stage tests, and a stage's tools in a temporary folder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folder_tools import FolderTools

from jobs.environment import Environment

logging.getLogger("py4j").setLevel(logging.WARNING)  # it says goodbye after pytest has closed the output


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
