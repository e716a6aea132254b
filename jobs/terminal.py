"""Tables for a terminal as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def text_console() -> Console:
    """A console that shows nothing and keeps what is printed on it, for its ``export_text``."""
    from rich.console import Console

    return Console(record=True, width=150, file=open("/dev/null", "w"))
