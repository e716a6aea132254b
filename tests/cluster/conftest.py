"""The chart's tools, built once, and the manifests of its default values."""

from __future__ import annotations

from typing import Any

import chart
import pytest


@pytest.fixture(scope="session")
def tools(tmp_path_factory) -> chart.Tools:
    return chart.build(tmp_path_factory.mktemp("tools"))


@pytest.fixture(scope="session")
def manifests(tools) -> str:
    return tools.render()


@pytest.fixture(scope="session")
def documents(manifests) -> list[dict[str, Any]]:
    return chart.load(manifests)
