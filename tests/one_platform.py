"""Which worker of `make test` runs what: one has all tests with services, so that there is one platform; elsewhere each file stays whole and in order.

A scheduler of ours and not `--dist loadgroup`: with pytest 9.2, xdist 3.8 silently ignores groups (it writes to an attribute of items that is gone).
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

WITH_SERVICES = ("tests/integration/", "tests/browser/test_page_in_airflow.py")


class OnePlatform(LoadScopeScheduling):
    """Gives out whole files, and all of ``WITH_SERVICES`` as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        return "services" if nodeid.startswith(WITH_SERVICES) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OnePlatform:
    return OnePlatform(config, log)
