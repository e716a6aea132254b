"""A signed model folder: any kind of tampering is refused and named; openssl and a reader of the published format agree with us."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from jobs.contract import MoelineError
from jobs.services import signing_key
from models import signature
from models.signature import SignatureRefused

KEY = signature.new_key()
PUBLIC = signature.public_of(KEY)
OTHER = signature.new_key()


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "model"
    for name, content in {"README.md": b"card", "weights/a.safetensors": bytes(range(256)) * 99, "weights-b": b"", "zz": b"z", "MLmodel": b"m"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    signature.sign(root, KEY, "moeline")
    return root


def bundle(folder: Path) -> dict:
    return json.loads((folder / "model.sig").read_text())


def payload(folder: Path) -> bytes:
    return base64.b64decode(bundle(folder)["dsseEnvelope"]["payload"])


def resigned(folder: Path, statement: dict) -> None:
    """Sign any statement, as somebody who has the key could."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = json.dumps(statement).encode()
    found = bundle(folder)
    signed = serialization.load_pem_private_key(KEY, None).sign(signature.pae(data), ec.ECDSA(hashes.SHA256()))
    found["dsseEnvelope"] |= {"payload": base64.b64encode(data).decode(), "signatures": [{"sig": base64.b64encode(signed).decode(), "keyid": ""}]}
    (folder / "model.sig").write_text(json.dumps(found))


def refusal(folder: Path) -> str:
    with pytest.raises(SignatureRefused) as problem:
        signature.verify(folder, [PUBLIC])
    return str(problem.value)


def test_an_untouched_folder_passes_wherever_it_lies_and_says_by_whom(folder, tmp_path):
    moved = shutil.move(folder, tmp_path / "elsewhere")
    found = signature.verify(moved, [signature.public_of(OTHER), PUBLIC])
    assert (found.key, found.name, found.files) == (hashlib.sha256(PUBLIC).hexdigest(), "moeline", 5)


@pytest.mark.parametrize("name", ["README.md", "weights/a.safetensors", "weights-b", "MLmodel"])
def test_a_changed_byte_is_refused_with_the_file(folder, name):
    file = folder / name
    content = bytearray(file.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = refusal(folder)
    assert f"changed: {name!r}." in said and "missing" not in said and "added" not in said


def test_missing_added_and_renamed_files_are_refused_with_their_names(folder):
    (folder / "zz").unlink()
    assert "missing: 'zz'." in refusal(folder)
    (folder / "zz").write_bytes(b"z")
    (folder / "weights" / ".hidden").write_bytes(b"")
    assert "added: 'weights/.hidden'." in refusal(folder)
    (folder / "weights" / ".hidden").unlink()
    (folder / "weights-b").rename(folder / "weights-c")
    said = refusal(folder)
    assert "missing: 'weights-b'; added: 'weights-c'" in said
    (folder / "weights-c").rename(folder / "weights-b")
    (folder / "model.sig.d").mkdir()
    (folder / "model.sig.d" / "registered_model_meta").write_bytes(b"")  # such a name is only passed over at the top
    assert "added: 'model.sig.d/registered_model_meta'." in refusal(folder)


def test_swapped_contents_are_refused(folder):
    one, other = (folder / "README.md").read_bytes(), (folder / "zz").read_bytes()
    (folder / "README.md").write_bytes(other)
    (folder / "zz").write_bytes(one)
    assert "changed: 'README.md', 'zz'." in refusal(folder)


def test_bytecode_beside_the_code_is_refused_and_explained(folder):
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    assert "added: '__pycache__/x.pyc'" in refusal(folder) and "Python writes __pycache__" in refusal(folder)


def test_links_are_refused_whatever_they_point_at(folder, tmp_path):
    (folder / "zz").rename(tmp_path / "zz")
    (folder / "zz").symlink_to(tmp_path / "zz")
    assert "zz is a link" in refusal(folder)
    (folder / "zz").unlink()
    os.mkfifo(folder / "zz")
    assert "no plain file" in refusal(folder)


def test_another_key_is_refused_even_when_the_folder_is_signed_again(folder):
    (folder / "README.md").write_bytes(b"other card")
    found = signature.sign(folder, OTHER, "moeline")
    said = refusal(folder)
    assert "signed by another key" in said and found.key in said and hashlib.sha256(PUBLIC).hexdigest() in said
    claimed = bundle(folder)
    claimed["verificationMaterial"]["publicKey"]["hint"] = signature.fingerprint(PUBLIC)
    (folder / "model.sig").write_text(json.dumps(claimed))
    assert "was altered, or was not made with the key" in refusal(folder)


def test_nobody_trusted_means_nothing_passes(folder):
    with pytest.raises(SignatureRefused, match="trusted keys: none"):
        signature.verify(folder, [])


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, json.dumps({"mediaType": 1, "dsseEnvelope": {"signatures": [{"sig": "!"}], "payload": "x"}}).encode()],
    ids=["none", "empty", "object", "list", "bytes", "deep", "base64"],
)
def test_a_missing_or_broken_signature_is_refused(folder, content):
    (folder / "model.sig").unlink()
    if content is not None:
        (folder / "model.sig").write_bytes(content)
    assert ("has no signature" if content is None else "is no signature of a model") in refusal(folder)


def test_an_altered_statement_is_refused(folder):
    found = bundle(folder)
    (folder / "zz").write_bytes(b"y")
    listed = payload(folder).replace(hashlib.sha256(b"z").hexdigest().encode(), hashlib.sha256(b"y").hexdigest().encode())
    assert listed != payload(folder)
    found["dsseEnvelope"]["payload"] = base64.b64encode(listed).decode()
    (folder / "model.sig").write_text(json.dumps(found))
    assert "was altered" in refusal(folder)


def test_a_rightly_signed_statement_that_covers_less_is_refused(folder):
    statement = json.loads(payload(folder))
    wider = json.loads(payload(folder))
    wider["predicate"]["serialization"]["ignore_paths"].append("weights")
    resigned(folder, wider)
    assert "signs something else than all files" in refusal(folder)
    resigned(folder, statement | {"predicateType": "https://example.org/review"})
    assert "signs something else" in refusal(folder)
    fewer = json.loads(json.dumps(statement))
    fewer["predicate"]["resources"].pop()
    resigned(folder, fewer)
    assert "contradicts itself" in refusal(folder)
    doubled = json.loads(json.dumps(statement))
    doubled["predicate"]["resources"].append(doubled["predicate"]["resources"][0])
    resigned(folder, doubled)
    assert "contradicts itself" in refusal(folder)
    resigned(folder, statement)
    assert signature.verify(folder, [PUBLIC]).files == 5


def test_openssl_verifies_the_signature(folder, tmp_path):
    (tmp_path / "key.pub").write_bytes(PUBLIC)
    (tmp_path / "signed").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d " % len(payload(folder)) + payload(folder))
    (tmp_path / "sig").write_bytes(base64.b64decode(bundle(folder)["dsseEnvelope"]["signatures"][0]["sig"]))

    def openssl() -> subprocess.CompletedProcess:
        command = ["openssl", "dgst", "-sha256", "-verify", tmp_path / "key.pub", "-signature", tmp_path / "sig", tmp_path / "signed"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert openssl().stdout == "Verified OK\n"
    (tmp_path / "signed").write_bytes((tmp_path / "signed").read_bytes() + b" ")
    assert openssl().returncode != 0


def test_the_statement_is_what_the_model_signing_format_says(folder):
    """Read as model-signing 1.1's dsse_payload_to_manifest reads it: one subject whose digest is sha256 over the digests in their order."""
    found = bundle(folder)
    assert found["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert found["verificationMaterial"] == {"publicKey": {"hint": hashlib.sha256(PUBLIC).hexdigest()}, "tlogEntries": []}
    assert found["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(payload(folder))
    assert (statement["_type"], statement["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0")
    resources = statement["predicate"]["resources"]
    assert [r["name"] for r in resources] == ["MLmodel", "README.md", "weights/a.safetensors", "weights-b", "zz"]  # by parts of the path
    files = subprocess.run(["sha256sum", *(r["name"] for r in resources)], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert files[::2] == [r["digest"] for r in resources] and {r["algorithm"] for r in resources} == {"sha256"}
    total = hashlib.sha256(b"".join(bytes.fromhex(r["digest"]) for r in resources)).hexdigest()
    assert statement["subject"] == [{"name": "moeline", "digest": {"sha256": total}}]
    assert statement["predicate"]["serialization"] == {
        "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ["model.sig", "registered_model_meta"],
    }  # fmt: skip


def test_a_home_makes_one_key_that_only_its_owner_reads(tmp_path):
    homes, barrier = [], threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        homes.append(signing_key.private(tmp_path))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(homes) == 8 and len(set(homes)) == 1
    files = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "keys").iterdir()}
    assert files == {"model-signing.pem": 0o600, "model-signing.pub": 0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert signing_key.trusted(tmp_path) == [signature.public_of(homes[0])]


def test_a_key_that_others_may_read_or_that_is_none_is_refused_and_never_shown(tmp_path):
    pem = signing_key.private(tmp_path)
    file = tmp_path / "keys" / "model-signing.pem"
    file.chmod(0o640)
    with pytest.raises(MoelineError, match=r"may be read by others \(mode 640") as problem:
        signing_key.private(tmp_path)
    assert pem.splitlines()[1].decode() not in str(problem.value)
    file.chmod(0o600)
    file.write_bytes(pem[:-60])
    with pytest.raises(MoelineError, match="not an unencrypted P-256 private key") as problem:
        signing_key.private(tmp_path)
    assert pem.splitlines()[1].decode() not in str(problem.value)


def test_a_new_key_leaves_older_models_valid_while_its_public_key_stays(folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    signature.sign(folder, signing_key.private(home), "moeline")
    keys = home / "keys"
    (keys / "model-signing.pub").rename(keys / "2025.pub")
    (keys / "model-signing.pem").unlink()
    signing_key.private(home)
    assert signing_key.verify(folder, home).files == 5
    (keys / "2025.pub").rename(tmp_path / "2025.pub")
    with pytest.raises(MoelineError, match="signed by another key"):
        signing_key.verify(folder, home)
    monkeypatch.setenv("MOELINE_MODEL_KEY", str(tmp_path / "2025.pub"))
    assert signing_key.verify(folder, home).files == 5
    (tmp_path / "2025.pub").write_bytes(b"no key")
    with pytest.raises(MoelineError, match=r"trusted key .* cannot be used"):
        signing_key.verify(folder, home)
    monkeypatch.delenv("MOELINE_MODEL_KEY")
    with pytest.raises(MoelineError, match="No public key is known"):
        signing_key.verify(folder, tmp_path / "nowhere")
