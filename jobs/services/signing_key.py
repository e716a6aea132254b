"""The key a home signs its models with, and the public keys it trusts: files in ``<home>/keys``.

``model-signing.pem`` (0600) is made on first use and never leaves the home; every ``*.pub`` there is trusted, the home's own among them. To
trust another home's models, put its public key there; to change the key, rename ``model-signing.pub`` (older models stay valid) and remove the .pem.
MOELINE_MODEL_KEY names other trusted keys instead: a file, or a folder of ``*.pub``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from pathlib import Path

from jobs.contract import MoelineError
from models import signature

VARIABLE = "MOELINE_MODEL_KEY"
FOLDER = "keys"
_PRIVATE = "model-signing.pem"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private(home: Path) -> bytes:
    """The home's private key (PEM), made when there is none. Raises MoelineError when others may read it."""
    file = home / FOLDER / _PRIVATE
    if not file.exists():
        _create(file, signature.new_key())
    if file.stat().st_mode & _OTHERS:
        raise MoelineError(
            f"{file} may be read by others (mode {stat.S_IMODE(file.stat().st_mode):o}), so nobody can rely on it. Run `chmod 600` on it, or remove it."
        )
    pem = file.read_bytes()
    try:
        public = signature.public_of(pem)
    except ValueError as error:
        raise MoelineError(f"{file} is {error}. Put the key back from a copy, or remove the file: the next registration makes another key.") from None
    known = home / FOLDER / signature.KEY_FILE
    if not known.is_file() or known.read_bytes() != public:
        _replace(known, public)
    return pem


def _create(file: Path, data: bytes) -> None:
    """Write a 0600 file once: of several processes the first one's stays."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        _write(temporary, data)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(file: Path, data: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    _write(temporary, data)
    os.replace(temporary, file)


def _write(file: Path, data: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def trusted(home: Path | None, key: Path | None = None) -> list[bytes]:
    """The public keys (PEM) trusted here; with ``key`` (a file, or a folder of ``*.pub``) only those. Raises MoelineError without any."""
    named = os.environ.get(VARIABLE)
    place = key or (Path(named) if named else home and home / FOLDER)
    files = [] if place is None else [place] if place.is_file() else sorted(place.glob("*.pub"))
    if not files:
        raise MoelineError(
            f"No public key is known to check a signature with (looked at {place or 'nothing'}). Put the signer's key, published with the model card, into "
            f"a file and name it: {VARIABLE}=FILE."
        )
    return [_checked(file) for file in files]


def _checked(file: Path) -> bytes:
    try:
        pem = file.read_bytes()
        signature.fingerprint(pem)
    except (OSError, ValueError) as error:
        raise MoelineError(f"The trusted key {file} cannot be used: {error}. Put the signer's public key (P-256, PEM) there, or remove the file.") from None
    return pem


def verify(folder: Path, home: Path | None, key: Path | None = None) -> signature.Verified:
    """models.signature.verify with the keys trusted here. Raises MoelineError with what is wrong."""
    try:
        return signature.verify(folder, trusted(home, key))
    except (signature.SignatureRefused, OSError) as problem:
        raise MoelineError(str(problem)) from None
