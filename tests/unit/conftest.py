"""Fixtures of the unit tests alone."""

from __future__ import annotations

import pytest
import small_lm_eval


@pytest.fixture(scope="module")
def offline_lm_eval():
    """lm_eval as these tests ask it: no network, no forked processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small_lm_eval.OFFLINE.items():
            patch.setenv(name, value)
        yield
