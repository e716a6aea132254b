"""Fixtures every layer shares. Nothing here starts a service."""

from __future__ import annotations

import pytest
from hypothesis import settings
from one_platform import pytest_xdist_make_scheduler  # noqa: F401 - which worker of `make test` runs what
from running_platform import platform  # noqa: F401 - the session's running platform, for tests with services
from whole_job import whole_job  # noqa: F401 - the whole job, run once on that platform

from jobs.environment import Environment

# The same examples in every run: what fails here fails for everybody. `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test reads the settings of the person who runs it."""
    for name in ("MOELINE_HOME", "MOELINE_ENV", "MOELINE_ATTEMPT", "MOELINE_MODEL_KEY", "GAUNTLET_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env(tmp_path) -> Environment:
    """A fresh environment of its own, without a platform."""
    return Environment.load("local", tmp_path / "home")


@pytest.fixture(scope="module")
def one_thread():
    """Matrices as small as in tests only lose by being shared out, and lose a lot where other work runs beside the tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
