"""The signature of a model folder: a statement of the sha256 of every file, signed with an elliptic curve key. Needs nothing but cryptography.

The format is that of model-signing 1.x (OpenSSF Model Signing v1.0), so that its command verifies what is written here:
`model_signing verify key FOLDER --signature FOLDER/model.sig --public_key FILE`. That is: an in-toto statement v1 in a DSSE envelope in a Sigstore
bundle v0.3; ECDSA on P-256, the keys it takes. Change here: the format. Not here: where keys lie and which are trusted (jobs/services/signing_key.py).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

FILE = "model.sig"
KEY_FILE = "model-signing.pub"  # the public key, beside the card; nothing here trusts it
_IGNORED = (FILE, "registered_model_meta")  # the second is written by MLflow into a folder it has fetched, and says where from
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(_IGNORED)}
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_LARGEST = 64_000_000  # bytes of a signature that are read: 100,000 files
_NAMED = 5  # files of each kind an error names


class SignatureRefused(ValueError):
    """A folder is not what was signed, or not by a key that is trusted: which files, which key, what to do."""


@dataclass(frozen=True)
class Verified:
    """``key``: fingerprint of the key that signed; ``digest``: sha256 over the digests of all files, hex."""

    key: str
    name: str
    files: int
    digest: str


def new_key() -> bytes:
    """A new private key: PEM (PKCS8), not encrypted. Its file must be nobody else's to read."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def public_of(private: bytes) -> bytes:
    """The public key (PEM) of a private one. Raises ValueError for anything but an unencrypted P-256 key, without repeating it."""
    return _public_bytes(_private(private).public_key())


def fingerprint(public: bytes) -> str:
    """sha256 of a public key's PEM, hex: what `sha256sum FILE` says of the file, and what model-signing calls the hint."""
    return hashlib.sha256(_public_bytes(_public(public))).hexdigest()


def sign(folder: Path, private: bytes, name: str) -> Verified:
    """Write ``folder/model.sig`` over every file in it. Raises SignatureRefused for links and special files, which no signature can cover."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = _private(private)
    found = digests(folder)
    total = _total(found.values())
    resources = [{"name": path, "algorithm": "sha256", "digest": digest} for path, digest in found.items()]
    statement = {
        "_type": _STATEMENT, "subject": [{"name": name, "digest": {"sha256": total}}], "predicateType": _PREDICATE,
        "predicate": {"serialization": _SERIALIZATION, "resources": resources},
    }  # fmt: skip
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    signed = key.sign(pae(payload), ec.ECDSA(hashes.SHA256()))
    hint = fingerprint(_public_bytes(key.public_key()))
    bundle = {
        "mediaType": _BUNDLE, "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {"payload": _base64(payload), "payloadType": _PAYLOAD, "signatures": [{"sig": _base64(signed), "keyid": ""}]},
    }  # fmt: skip
    (folder / FILE).write_text(json.dumps(bundle, sort_keys=True))
    return Verified(hint, name, len(found), total)


def verify(folder: Path, trusted: Iterable[bytes]) -> Verified:
    """Check that every file is as it was signed by one of the ``trusted`` public keys (PEM), that none is missing and none was added.

    Reads every file once. Raises SignatureRefused otherwise. Nothing of the signature is believed before its key is known and it fits.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = {fingerprint(public): public for public in trusted}
    payload, signed, hint = _opened(folder)
    if hint not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise SignatureRefused(f"{folder} is signed by another key ({hint[:64]!r}); trusted keys: {known}. Trust its key if you know whose it is.")
    try:
        _public(keys[hint]).verify(signed, pae(payload), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SignatureRefused(f"{folder}: {FILE} was altered, or was not made with the key {hint} it names. Fetch the model again.") from None
    try:
        name, listed = _listed(folder, payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, SignatureRefused) else SignatureRefused(f"{folder}: {FILE} signs no statement of files. Register it again.") from None
    _compare(folder, listed, digests(folder))
    return Verified(hint, name, len(listed), _total(listed.values()))


def digests(folder: Path) -> dict[str, str]:
    """sha256 hex of every file by its path in the folder, sorted; without what is never signed. Raises SignatureRefused for links and special files."""
    found: dict[str, str] = {}
    for at, folders, files in os.walk(folder, onerror=_raise):
        for entry in (*folders, *files):
            path = Path(at) / entry
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise SignatureRefused(f"{folder}: {relative} is a link or no plain file; a signed folder holds plain files only. Put the file itself there.")
            if path.is_file() and relative not in _IGNORED:
                with path.open("rb") as content:
                    found[relative] = hashlib.file_digest(content, "sha256").hexdigest()
    return dict(sorted(found.items(), key=lambda one: PurePosixPath(one[0]).parts))


def _raise(problem: OSError) -> None:
    raise problem  # a folder that cannot be read could hold anything


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of the payload (secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _opened(folder: Path) -> tuple[bytes, bytes, str]:
    """(payload, signature, fingerprint of the key it names) of a folder's signature file."""
    file = folder / FILE
    if file.is_symlink() or not file.is_file():
        raise SignatureRefused(f"{folder} has no signature ({FILE}). Fetch the model again, or register it again: every registered model is signed.")
    if file.stat().st_size > _LARGEST:
        raise SignatureRefused(f"{file} has {file.stat().st_size:,} bytes, more than any signature. Fetch the model again.")
    try:
        bundle = json.loads(file.read_bytes())
        envelope = bundle["dsseEnvelope"]
        [signature] = envelope["signatures"]
        read = base64.b64decode(envelope["payload"], validate=True), base64.b64decode(signature["sig"], validate=True)
        hint, kind, payload_kind = bundle["verificationMaterial"]["publicKey"]["hint"], bundle["mediaType"], envelope["payloadType"]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise SignatureRefused(f"{file} is no signature of a model ({type(error).__name__}). Fetch the model again.") from None
    if (kind, payload_kind) != (_BUNDLE, _PAYLOAD) or not isinstance(hint, str):
        raise SignatureRefused(f"{file} is another kind of signature ({str(kind)[:80]!r}); this reads those of model-signing 1.x with a key.")
    return *read, hint


def _listed(folder: Path, payload: bytes) -> tuple[str, dict[str, str]]:
    """(name, path -> sha256) of a statement whose signature fits. Raises SignatureRefused for one that does not cover a whole folder as we sign it."""
    statement = json.loads(payload)
    predicate, subjects = statement.get("predicate", {}), statement.get("subject", [])
    serialization = predicate.get("serialization", {})
    ours = {**serialization, "ignore_paths": sorted(serialization.get("ignore_paths", []))} == {**_SERIALIZATION, "ignore_paths": sorted(_IGNORED)}
    if (statement.get("_type"), statement.get("predicateType"), ours, len(subjects)) != (_STATEMENT, _PREDICATE, True, 1):
        raise SignatureRefused(f"{folder}: {FILE} signs something else than all files of a model folder. Register the model again.")
    resources = predicate["resources"]
    listed = {r["name"]: r["digest"] for r in resources if r["algorithm"] == "sha256"}
    if len(listed) != len(resources) or _total(r["digest"] for r in resources) != subjects[0]["digest"]["sha256"]:
        raise SignatureRefused(f"{folder}: {FILE} contradicts itself. Register the model again.")
    return str(subjects[0]["name"]), listed


def _compare(folder: Path, listed: Mapping[str, str], found: Mapping[str, str]) -> None:
    differing = {
        "changed": [path for path in listed if path in found and found[path] != listed[path]], "missing": [path for path in listed if path not in found],
        "added": [path for path in found if path not in listed],
    }  # fmt: skip
    told = [f"{what}: {_names(paths)}" for what, paths in differing.items() if paths]
    if told:
        hint = " Python writes __pycache__ where it loads code; remove such folders." if any("__pycache__" in path for path in differing["added"]) else ""
        raise SignatureRefused(f"{folder} is not what was signed; {'; '.join(told)}. Do not load it; fetch it again.{hint}")


def _names(paths: Sequence[str]) -> str:
    shown = ", ".join(repr(path) for path in paths[:_NAMED])
    return f"{shown} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else shown


def _total(hex_digests: Iterable[str]) -> str:
    total = hashlib.sha256()
    for digest in hex_digests:
        total.update(bytes.fromhex(digest))
    return total.hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _private(pem: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ValueError("not an unencrypted P-256 private key in PEM")
    return key


def _public(pem: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("not a P-256 public key in PEM")
    return key


def _public_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    return bytes(key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
