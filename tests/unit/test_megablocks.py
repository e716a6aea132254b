"""MegaBlocks itself agrees with our experts: its released Python code, run without a GPU under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("build_megablocks", ROOT / "infra" / "gpu" / "build_megablocks.py")
build_megablocks = importlib.util.module_from_spec(spec)
sys.modules["build_megablocks"] = build_megablocks
spec.loader.exec_module(build_megablocks)


@pytest.fixture(scope="module")
def archives() -> dict[str, Path]:
    return build_megablocks.fetch()


@pytest.fixture(scope="module")
def measured(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict:
    sources = tmp_path_factory.mktemp("megablocks")
    folders = build_megablocks.unpack(archives, sources)
    path = os.pathsep.join(map(str, (folders["megablocks"], folders["stanford-stk"], ROOT)))
    script = Path(__file__).with_name("megablocks_on_cpu.py")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, check=False, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", ["reference", "grouped_mm", "megablocks"])
@pytest.mark.parametrize("load", ["even", "four experts", "one token"])
def test_every_backend_equals_megablocks_own_layer(measured: dict, backend: str, load: str) -> None:
    """Output, balancing loss and the gradients of input, router, w1, v1 and w2 from the same weights, in float32."""
    assert measured["differences"][f"{backend}, {load}"] < 2e-6


def test_the_traps_of_its_global_losses_are_still_there(measured: dict) -> None:
    """Why ours are returned from forward. When this fails, MegaBlocks was mended and models/moe.py may say so."""
    assert measured["traps"] == {
        "checkpointing: losses kept, with gradient": [1, True], "checkpointing: losses kept after backward": 2,
        "re-entrant checkpointing: losses kept, with gradient": [1, False], "re-entrant checkpointing: losses kept after backward": 2,
        "eval mode": "ValueError",
    }  # fmt: skip


def test_an_edit_that_does_not_fit_stops_the_build(archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = build_megablocks.Edit("megablocks-0.10.0/csrc/sort.h", "not there", "x", 1, "a test")
    monkeypatch.setattr(build_megablocks, "EDITS", (edit,))
    with pytest.raises(build_megablocks.Problem, match=r"sort\.h: 'not there' stands there 0 times, not 1"):
        build_megablocks.unpack(archives, tmp_path)


def test_a_source_that_is_not_what_was_pinned_is_not_kept(archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "stanford_stk-0.7.1.tar.gz"
    served = tmp_path / "index" / "stanford-stk"
    served.mkdir(parents=True)
    shutil.copy(archives[name], served / name)
    with (served / name).open("ab") as file:
        file.write(b"one more byte")
    listing = json.dumps({"files": [{"filename": name, "url": (served / name).as_uri()}]})
    (tmp_path / "index" / "page").write_text(listing)
    read = build_megablocks._read
    monkeypatch.setattr(build_megablocks, "_read", lambda url, accept: listing.encode() if accept.endswith("json") else read(url, accept))
    with pytest.raises(build_megablocks.Problem, match="sha256"):
        build_megablocks._download("stanford-stk", name, build_megablocks.SOURCES[name][1], tmp_path)
    assert not (tmp_path / name).exists()
