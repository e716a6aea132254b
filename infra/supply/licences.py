"""Which licence a distribution states in its own metadata, as SPDX where that can be said for sure.

The order is that of how exact the fields are: License-Expression (PEP 639), License when it is SPDX or one of the usual spellings, classifiers, and for
"BSD" without a number or for nothing at all the words of the licence text. What a wheel bundles beside its own code is not looked into.
Change here: how a licence is read. Not here: which licences are fine (infra/supply/policy.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distributions
from pathlib import Path

from cyclonedx.spdx import fixup_id, is_expression
from packaging.utils import canonicalize_name

UNKNOWN = "unknown"
_TEXT_START = 3000  # characters of a licence file that are about the package itself; after them come the licences of what it bundles
# Spellings of the field License in the wild that leave no doubt, lower case.
_SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "isc license": "ISC",
    "lgpl-3.0-or-newer": "LGPL-3.0-or-later",
    "mit -or- apache license 2.0": "MIT OR Apache-2.0",
    "mit license": "MIT",
}
# Trove classifiers with one SPDX identifier. "BSD License", "Artistic License" and "LGPL" alone name a family: they are not here.
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}


@dataclass(frozen=True)
class Licence:
    """``text``: an SPDX expression where ``spdx``, else "unknown" or "unknown (what the metadata says)". ``source``: where that was read."""

    text: str
    source: str
    spdx: bool = True


NOT_INSTALLED = Licence(UNKNOWN, "not installed", spdx=False)


class Installed:
    """The distributions of some folders, by name; without folders those of this Python."""

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        found = distributions(path=[str(folder) for folder in folders]) if folders is not None else distributions()
        self._by_name: dict[str, Distribution] = {}
        for one in found:
            # The first on the path is the one that is imported. A folder whose metadata was removed by half has no name.
            if one.metadata and one.metadata["Name"]:
                self._by_name.setdefault(canonicalize_name(one.metadata["Name"]), one)

    def find(self, name: str, version: str) -> Distribution:
        """Raises PackageNotFoundError unless exactly this version is installed: another version may have another licence."""
        one = self._by_name.get(canonicalize_name(name))
        if one is None or one.version != version:
            raise PackageNotFoundError(name)
        return one

    def licence(self, name: str, version: str) -> Licence:
        try:
            return stated(self.find(name, version))
        except PackageNotFoundError:
            return NOT_INSTALLED


def stated(one: Distribution) -> Licence:
    """The licence that a distribution states."""
    metadata = one.metadata
    if expression := metadata.get("License-Expression"):
        # A LicenseRef- is right SPDX for a licence that is on no list; the library knows only those on the list.
        checkable = re.sub(r"\bLicenseRef-[A-Za-z0-9.-]+", "MIT", expression)
        return Licence(expression, "License-Expression") if is_expression(checkable) else _unknown(expression)
    field = (metadata.get("License") or "").strip()
    field = "" if field.upper() == "UNKNOWN" else field
    if spdx := _spdx(field):
        return Licence(spdx, "License")
    names = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or [] if text.startswith("License :: ")]
    names = [name for name in dict.fromkeys(names) if name not in ("OSI Approved", "DFSG approved")]
    if names and all(name in _CLASSIFIERS for name in names):
        # Two classifiers may mean "or" or "and"; the stricter reading is taken.
        return Licence(" AND ".join(_CLASSIFIERS[name] for name in names), "classifier")
    if names in ([], ["BSD License"]):
        for text, source in [(field, "License"), *((text, "licence file") for text in _files(one))]:
            if spdx := recognised(text):
                return Licence(spdx, source)
    return _unknown(", ".join(names) or field.splitlines()[0] if names or field else "")


def recognised(text: str) -> str | None:
    """MIT, BSD-3-Clause or BSD-2-Clause by the words that only they have, or None. Sources: the texts of the SPDX licence list."""
    start = re.sub(r"[\s*#>]+", " ", text[:_TEXT_START]).lower()
    if "redistribution and use in source and binary forms" in start:
        third = re.search(r"neither the names? |(name|names) of .{0,80}(may not|must not) be used to endorse|contributors may not be used to endorse", start)
        return "BSD-3-Clause" if third else "BSD-2-Clause"
    if "permission is hereby granted, free of charge" in start and "the above copyright notice and this permission notice shall be included" in start:
        return "MIT"
    return None


def _spdx(field: str) -> str | None:
    if len(field) > 100 or not field:
        return None
    if spelled := _SPELLINGS.get(field.lower()):
        return spelled
    if identifier := fixup_id(field):
        return identifier
    return field if is_expression(field) and re.search(r" (AND|OR|WITH) ", field) else None


def _files(one: Distribution) -> list[str]:
    """The texts of the distribution's licence files, those named by the metadata and those beside it."""
    named = [path for path in one.files or [] if ".dist-info/" in str(path) and re.match(r"(?i)licen[cs]e|copying", path.name)]
    return [Path(str(one.locate_file(path))).read_text(errors="replace")[:_TEXT_START] for path in named if Path(str(one.locate_file(path))).is_file()]


def _unknown(said: str) -> Licence:
    return Licence(f"{UNKNOWN} ({said[:100]})" if said else UNKNOWN, "metadata", spdx=False)
