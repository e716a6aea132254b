"""MegaBlocks for the torch and CUDA of this machine: `python infra/gpu/build_megablocks.py --out wheels`, then install the wheels.

MegaBlocks 0.10.0 and grouped_gemm 0.3.0 are released as sources, for torch 2.7 only. This takes their sources from the package index
that pip is set to use (sha256 pinned), makes the edits in EDITS, each with its reason, and builds wheels with the Python that runs this
script, which has torch in it. A compiler without a GPU is enough: code is made for the architecture asked for.

Change here: which version is built, what is edited. Not here: how its kernels are called (models/experts.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

SOURCES = {  # file name: (project, sha256)
    "megablocks-0.10.0.tar.gz": ("megablocks", "956fd9880fa869f7468da125da230733d5f84e10a9f8c2991e5e16523c6fe1e0"),
    "grouped_gemm-0.3.0.tar.gz": ("grouped-gemm", "f0555da33a975610e9160f52449082c5e699525524581a0e5f990b14b02676a3"),
    "stanford_stk-0.7.1.tar.gz": ("stanford-stk", "fc46140c2572ee9c008b2ac67ee6656f63f49c1074da8aea0923fa8290702871"),
}
CACHE = Path(__file__).resolve().parent.parent.parent / ".megablocks"


@dataclass(frozen=True)
class Edit:
    """``old`` stands exactly ``times`` times in ``file`` and becomes ``new``."""

    file: str
    old: str
    new: str
    times: int
    why: str


EDITS = (
    Edit(
        "megablocks-0.10.0/csrc/cumsum.h", "stream,\n\t\t\t\t\t    debug_synchronous));", "stream));", 2,
        "CUB of CUDA 13 has no debug_synchronous argument any more",
    ),
    Edit("grouped_gemm-0.3.0/setup.py", "-std=c++17", "-std=c++20", 1, "the headers of torch 2.11 and later need C++20"),
)  # fmt: skip


class Problem(Exception):
    """Shown as one line, without a traceback."""


def package_index() -> str:
    """The index pip uses on this machine."""
    asked = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX")
    for pip in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"]):
        if asked:
            break
        try:
            asked = subprocess.run([*pip, "config", "get", "global.index-url"], capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            continue
    return (asked or "https://pypi" + ".org/simple").rstrip("/") + "/"


def fetch(cache: Path = CACHE) -> dict[str, Path]:
    """The source distributions by file name, downloaded into ``cache`` once. Raises Problem when one is not what was pinned."""
    cache.mkdir(parents=True, exist_ok=True)
    return {name: cache / name if _is(cache / name, digest) else _download(project, name, digest, cache) for name, (project, digest) in SOURCES.items()}


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


def _download(project: str, name: str, digest: str, cache: Path) -> Path:
    page = urljoin(package_index(), f"{project}/")
    try:
        listing = json.loads(_read(page, "application/vnd.pypi.simple.v1+json"))
        found = [entry["url"] for entry in listing["files"] if entry["filename"] == name]
        data = _read(urljoin(page, found[0]), "*/*") if found else None
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"{name} could not be fetched from the package index ({type(error).__name__}: {error}). Put the file into {cache} yourself.") from error
    if data is None:
        raise Problem(f"The package index has no {name}. Put the file into {cache} yourself.")
    if (got := hashlib.sha256(data).hexdigest()) != digest:
        raise Problem(f"{name}: sha256 {got}, expected {digest}. Nothing was kept; find out why before you go on.")
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
        file.write(data)
    return Path(file.name).rename(cache / name)


def _read(url: str, accept: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - the index the user configured
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return answer.read()


def unpack(sources: dict[str, Path], to: Path) -> dict[str, Path]:
    """The sources under ``to``, edited; returns their folders by project. Raises Problem when an edit does not fit."""
    for archive in sources.values():
        with tarfile.open(archive) as tar:
            tar.extractall(to, filter="data")
    for edit in EDITS:
        text = (to / edit.file).read_text()
        if (found := text.count(edit.old)) != edit.times:
            raise Problem(f"{edit.file}: {edit.old!r} stands there {found} times, not {edit.times}: this script was made for other sources.")
        (to / edit.file).write_text(text.replace(edit.old, edit.new))
    return {project: to / name.removesuffix(".tar.gz") for name, (project, _) in SOURCES.items()}


def cuda_home(scratch: Path) -> Path:
    """A CUDA toolkit: CUDA_HOME, nvcc's on PATH, or NVIDIA's wheels beside torch (their libraries get the names a linker looks for)."""
    if os.environ.get("CUDA_HOME"):
        return Path(os.environ["CUDA_HOME"])
    if nvcc := shutil.which("nvcc"):
        return Path(nvcc).resolve().parent.parent
    import torch

    major = str(torch.version.cuda).partition(".")[0]
    wheels = Path(torch.__file__).parent.parent / "nvidia" / f"cu{major}"
    if not (wheels / "bin" / "nvcc").is_file():
        raise Problem(
            f"No nvcc: set CUDA_HOME, or install NVIDIA's wheels beside torch {torch.__version__}: "
            f"pip install 'cuda-toolkit[nvcc,cccl,crt,cudart,cublas,cusparse,cusolver,curand]=={torch.version.cuda}.*' 'nvidia-nvvm=={torch.version.cuda}.*'."
        )
    home = scratch / "cuda"
    (home / "lib64").mkdir(parents=True)
    for part in ("bin", "include", "nvvm"):
        (home / part).symlink_to(wheels / part)
    for library in (wheels / "lib").glob("lib*.so*"):
        for name in (library.name, library.name.partition(".so")[0] + ".so"):
            if not (home / "lib64" / name).exists():
                (home / "lib64" / name).symlink_to(library)
    return home


def build(out: Path, *, architecture: str) -> list[Path]:
    """Wheels of the three projects in ``out``. Raises Problem when one does not compile; its compiler's last lines are in the message."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="megablocks-") as scratch:
        home = cuda_home(Path(scratch))
        variables = {**os.environ, "CUDA_HOME": str(home), "TORCH_CUDA_ARCH_LIST": architecture, "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
        wheels = []
        for project, folder in unpack(fetch(), Path(scratch)).items():
            print(f"Building {folder.name} for {architecture} ...", flush=True)
            call = f"import setuptools.build_meta as b; print(b.build_wheel({str(out.resolve())!r}))"
            done = subprocess.run([sys.executable, "-c", call], cwd=folder, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = (done.stdout + done.stderr).splitlines()
                raise Problem(f"{project} did not build:\n" + "\n".join([line for line in lines if "error" in line.lower()][:15] or lines[-15:]))
            wheels.append(out / done.stdout.splitlines()[-1])
    return wheels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder the wheels are written to")
    parser.add_argument("--architecture", default="9.0", help="compute capability of the GPU (9.0: H100 and H200)")
    asked = parser.parse_args()
    try:
        wheels = build(asked.out, architecture=asked.architecture)
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"Install them without their pins, which are torch 2.7's: {sys.executable} -m pip install --no-deps {' '.join(map(str, wheels))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
