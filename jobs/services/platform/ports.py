"""Free ports on loopback: the usual one when nobody has it, else one the kernel hands out."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping

from jobs.contract import MoelineError
from jobs.services.platform.record import taken

LOOPBACK = "127.0.0.1"


def choose_ports(usual: Mapping[str, int]) -> dict[str, int]:
    """One free and distinct port per name. ``usual`` maps names to wished ports; 0 means any."""
    held: list[socket.socket] = []
    try:
        chosen: dict[str, int] = {}
        # Wished ports first: otherwise the kernel could hand one of them to a name that takes any.
        for name, port in sorted(usual.items(), key=lambda item: item[1] == 0):
            listener = (_bind(port) if port else None) or _bind(0)
            if listener is None:
                raise MoelineError(f"A port for {name} was asked for; this machine has no free port on {LOOPBACK}.")
            held.append(listener)
            chosen[name] = listener.getsockname()[1]
        return {name: chosen[name] for name in usual}
    finally:
        for listener in held:
            listener.close()


@contextlib.contextmanager
def turn(*, timeout_seconds: float, waiting: Callable[[], None]) -> Iterator[None]:
    """From choosing ports until somebody listens on them, one platform of this machine at a time.

    Two that chose the same port would both be told to be healthy, by the one server that got it. A lock on the temporary folder, which is the same for
    all and which nobody needs a file in; the kernel drops it with its holder. Who held it for ``timeout_seconds`` is not waited for any longer.
    """
    descriptor = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        taken(descriptor, timeout_seconds=timeout_seconds, waiting=waiting)
        yield
    finally:
        os.close(descriptor)


def is_taken(port: int) -> bool:
    """Whether somebody listens on the port, on loopback or on all addresses."""
    listener = _bind(port)
    if listener is not None:
        listener.close()
    return listener is None


def _bind(port: int) -> socket.socket | None:
    """A socket on the port, or None when someone listens there on loopback or on all addresses."""
    for address in ("", LOOPBACK):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
        try:
            listener.bind((address, port))
            listener.listen(1)  # with SO_REUSEADDR only listening reveals another listener
        except OSError:
            listener.close()
            return None
        if address == LOOPBACK:
            return listener
        listener.close()
    return None
