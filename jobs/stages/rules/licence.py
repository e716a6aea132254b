"""Which licences may train: SPDX licence expressions (SPDX 2.3, annex D) against an allow list."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.contract import MoelineError

UNKNOWN = "licence.unknown"
NOT_ALLOWED = "licence.not_allowed"
UNREADABLE = "licence.unreadable"  # stated, but no SPDX expression: what it allows cannot be judged

_TOKEN = re.compile(r"\s*(\(|\)|[A-Za-z0-9][A-Za-z0-9.:-]*\+?)")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*\Z")
_NOT_STATED = {"", "NOASSERTION", "UNKNOWN"}
_MAX_LENGTH = 4096  # an expression nests brackets; text from outside must not nest them without end


class LicenceList:
    """``A OR B`` is allowed when one of them is, ``A AND B`` when both are; ``A+`` and ``A WITH exception`` when A is (an
    exception only adds permissions). Identifiers ignore case, as SPDX says."""

    def __init__(self, allowed: Iterable[str], allow_unknown: bool):
        names = tuple(allowed)
        bad = [name for name in names if not _IDENTIFIER.match(name)]
        if bad:
            raise MoelineError(f"CleanConfig.allowed_licences takes single SPDX identifiers, found {bad}. Write e.g. 'MIT', 'Apache-2.0'.")
        self._allowed = {name.lower() for name in names}
        self._allow_unknown = allow_unknown
        self._judged: dict[str, str | None] = {}

    def refuse(self, expression: str | None) -> str | None:
        """The rule that a document with this licence breaks, or None when it may stay."""
        if expression is None or expression.strip().upper() in _NOT_STATED:
            return None if self._allow_unknown else UNKNOWN
        if expression not in self._judged:
            if len(self._judged) > 10_000:
                self._judged.clear()
            self._judged[expression] = self._judge(expression)
        return self._judged[expression]

    def _judge(self, expression: str) -> str | None:
        try:
            tokens = _tokens(expression)
            allowed, at = self._either(tokens, 0)
            if at != len(tokens):
                return UNREADABLE
        except (ValueError, IndexError, RecursionError):
            return UNREADABLE
        return None if allowed else NOT_ALLOWED

    def _either(self, tokens: list[str], at: int) -> tuple[bool, int]:
        allowed, at = self._both(tokens, at)
        while at < len(tokens) and tokens[at].upper() == "OR":
            right, at = self._both(tokens, at + 1)
            allowed = allowed or right
        return allowed, at

    def _both(self, tokens: list[str], at: int) -> tuple[bool, int]:
        allowed, at = self._single(tokens, at)
        while at < len(tokens) and tokens[at].upper() == "AND":
            right, at = self._single(tokens, at + 1)
            allowed = allowed and right
        return allowed, at

    def _single(self, tokens: list[str], at: int) -> tuple[bool, int]:
        if tokens[at] == "(":
            allowed, at = self._either(tokens, at + 1)
            if tokens[at] != ")":
                raise ValueError(tokens[at])
            return allowed, at + 1
        name = tokens[at]
        if name == ")" or name.upper() in ("AND", "OR", "WITH"):
            raise ValueError(name)
        at += 1
        if at < len(tokens) and tokens[at].upper() == "WITH":
            if not _IDENTIFIER.match(tokens[at + 1]):
                raise ValueError(tokens[at + 1])
            at += 2
        return name.lower().rstrip("+") in self._allowed, at


def _tokens(expression: str) -> list[str]:
    expression = expression.strip()
    if len(expression) > _MAX_LENGTH:
        raise ValueError("too long for a licence expression")
    found, at = [], 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ValueError(expression[at:])
        found.append(match[1])
        at = match.end()
    return found
