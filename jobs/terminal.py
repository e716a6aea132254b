"""What a person reads in a terminal: lines while something is done, and text that may hold anything, made harmless."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """A line about what is going on; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def printed(lines: Iterable[str]) -> str:
    """Lines as text in which every character that cannot be printed, as one that moves the cursor, is written out."""
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines) + "\n"


def text_console() -> Console:
    """A console that shows nothing and keeps what is printed on it, for its ``export_text``."""
    from rich.console import Console

    return Console(record=True, width=150, file=open("/dev/null", "w"))
