"""Start hook of the Ray head (Ray calls it through RAY_START_HOOK with its parameters)."""

from __future__ import annotations

from typing import Any


def without_client_server(parameters: Any, head: bool) -> None:
    """No Ray Client server: nothing of moeline speaks ``ray://`` to a local head, and it costs a Python process."""
    parameters.ray_client_server_port = None
