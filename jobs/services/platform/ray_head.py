"""Start hook of the Ray head (Ray calls it through RAY_START_HOOK with its parameters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADDRESS_FILE = "ray_current_cluster"  # Ray writes it when the head has registered: its sockets are there long before


def prepare(parameters: Any, head: bool) -> None:
    """Forget that an earlier head was ready, and start no Ray Client server: nothing of moeline speaks ``ray://`` to a local head."""
    (Path(parameters.temp_dir) / ADDRESS_FILE).unlink(missing_ok=True)
    parameters.ray_client_server_port = None
