"""Personal data and secrets replaced by typed placeholders: e-mail, public IP, phone, card number, IBAN, keys and tokens.

A finding must hold by itself, since most texts are code or documentation, full of versions, digests, times and identifiers:
cards by issuer prefix, grouping and Luhn's digit, IBANs by country length and modulo 97, IPs by being public and no version number.
Only counts leave this file, never a value. Patterns start at the start of a run and repeat possessively or boundedly, so that no
text takes more than linear time. Not found: names, postal addresses, national numbers without a plus sign outside North America,
internationalised e-mail addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from jobs.contract import MoelineError

_EMAIL = re.compile(r"(?<![\w.%+-])([A-Za-z0-9._%+-]{1,64}+)@((?:[A-Za-z0-9-]{1,63}+\.){1,8}([A-Za-z]{2,14}))(?![\w(-])")
# Longer top-level domains are a list of 1,400; without one `x@self.weight` would be an address.
_LONG = (
    "academy agency app aero art asia biz blog care cat center church cloud club com company coop design dev digital edu email energy engineering eus "
    "foundation fund gal global gmbh gov group health info ink institute int international jobs law legal life link live mail media mil mobi museum "
    "name net network news ngo one online ong org page post press pro school science services shop site social software solutions space store studio "
    "support swiss systems team tech technology tel today tools top travel university wiki work works world xyz zone"
)
_LONG_DOMAINS = frozenset(_LONG.split())
_RESERVED_DOMAIN = re.compile(r"(?:.*\.)?(?:example\.(?:com|net|org|edu)|example|invalid|test|localhost)", re.IGNORECASE | re.DOTALL)  # RFC 2606

_IPV4 = re.compile(r"(?<![\w.-])(?<![<>=~!^]=)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")  # 2000::/3, all that is public

_PHONE = re.compile(r"(?<![\w+.,*/=-])(?:\+[1-9][\d ().-]{6,20}\d|\([2-9]\d\d\) ?[2-9]\d\d[-.]\d{4}|[2-9]\d\d([-.])[2-9]\d\d\1\d{4})(?![\w-]|\.\d)")

_CARD = re.compile(r"(?<![\w.+-])[2-6](?:[ -]?\d){13,15}(?![\w-]|[ ]\d|\.\d)")  # 13 and 19 digits, rare on cards and common in code, are left
_CARD_KINDS = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}"
)
_CARD_GROUPS = frozenset(((4, 4, 4, 4), (4, 6, 5), (4, 6, 4)))

_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?+(?![\w-])")
_IBANS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 "
    "GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 "
    "PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}

_PRIVATE_KEY = re.compile(
    r"(-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----)((?:[^-]|-(?!----))*+)(-----END (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----)?"
)
_KEY_MATERIAL = re.compile(r"(?:[\s\\n\"']*+[A-Za-z0-9/+=]{32,}+)*+")
_TOKEN = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS key id
    r"|gh[pousr]_[A-Za-z0-9]{36,255}+|github_pat_\w{22,255}+|glpat-[\w-]{20,64}+"  # GitHub, GitLab
    r"|xox[abposre]-[\w-]{10,255}+|AIza[\w-]{35}|ya29\.[\w-]{20,}+"  # Slack, Google
    r"|sk-(?:proj|ant|svcacct|admin|or|live)-[\w-]{20,}+|sk-[A-Za-z0-9]{32,}+|[sr]k_live_[A-Za-z0-9]{16,}+"  # OpenAI, Anthropic, Stripe
    r"|hf_[A-Za-z]{34}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}+|SG\.[\w-]{22}\.[\w-]{43}"  # Hugging Face, npm, PyPI, SendGrid
    r"|eyJ[\w-]{10,}+\.eyJ[\w-]{10,}+\.[\w-]{10,}+)(?![\w-])"  # JSON web token
)
_TOKEN_MARKS = ("AKIA", "ASIA", "gh", "github_pat_", "glpat-", "xox", "AIza", "ya29.", "sk-", "k_live_", "hf_", "npm_", "pypi-", "SG.", "eyJ")
_ASSIGNED = re.compile(r"(aws_?secret_?(?:access_?)?key[\"']?\s{0,4}[:=]\s{0,4}[\"']?)([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", re.IGNORECASE)


def _is_email(match: re.Match[str]) -> bool:
    local, domain, top = match[1], match[2], match[3].lower()
    if local == "git" or local[0] == "." or local[-1] == "." or (len(top) > 2 and top not in _LONG_DOMAINS):
        return False  # git@host is how repositories are named, and nobody's address
    return not _RESERVED_DOMAIN.fullmatch(domain)


def _is_public_ipv4(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    # Two parts of at least 32: seldom so in a version number, and so in 99.3 % of all addresses.
    return address.is_global and sum(part >= 32 for part in address.packed) >= 2


def _is_public_ipv6(match: re.Match[str]) -> bool:
    if sum(map(bool, match[0].split(":"))) < 3:
        return False  # `2019::` in prose
    try:
        return ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False


def _is_phone(match: re.Match[str]) -> bool:
    found = match[0]
    if found[0] != "+":
        return True
    groups = re.findall(r"\d+", found.replace("(0)", ""))
    digits = sum(map(len, groups))
    if len(groups) == 1:
        return 11 <= digits <= 15
    if "  " in found or found.count("(") != found.count(")") or (len(groups) == 2 and "." in found):  # +1.5: a number
        return False
    long_enough = digits >= 10 or (digits >= 8 and max(map(len, groups[1:])) >= 3)
    return long_enough and digits <= 15 and len(groups[0]) <= 4 and len(groups) <= 6 and all(len(group) >= 2 for group in groups[2:])


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_card(match: re.Match[str]) -> bool:
    groups = re.split(r"[ -]", match[0])
    digits = "".join(groups)
    right_groups = len(groups) == 1 or (tuple(map(len, groups)) in _CARD_GROUPS and not (" " in match[0] and "-" in match[0]))
    return right_groups and _CARD_KINDS.fullmatch(digits) is not None and luhn(digits) and len(set(digits)) > 1


def iban(text: str) -> bool:
    """Whether ``text`` (no blanks) is an IBAN: its country's length and ISO 7064's modulo 97."""
    if _IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def _is_iban(match: re.Match[str]) -> bool:
    return iban(match[0].replace(" ", ""))


def _is_token(match: re.Match[str]) -> bool:
    return any(c.isdigit() for c in match[0]) or match[0].startswith("hf_")  # `sk-` also begins the names of style sheets


Replaced = tuple[str, int]


def _replace(pattern: re.Pattern[str], holds: Callable[[re.Match[str]], bool], placeholder: str, text: str) -> Replaced:
    found = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal found
        if not holds(match):
            return match[0]
        found += 1
        return placeholder

    text = pattern.sub(replacement, text)
    return text, found


def _secrets(text: str) -> Replaced:
    found = 0

    def key(match: re.Match[str]) -> str:
        nonlocal found
        body, end = match[2], match[3]
        material = body if end else _KEY_MATERIAL.match(body)[0]  # a key cut short must not take the text after it along
        if sum(c.isalnum() for c in material) < 40:
            return match[0]  # a mention
        found += 1
        return "<SECRET>" if end else "<SECRET>" + body[len(material) :]

    def assigned(match: re.Match[str]) -> str:
        nonlocal found
        found += 1
        return f"{match[1]}<SECRET>"

    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(key, text)
    n_tokens = 0
    if any(mark in text for mark in _TOKEN_MARKS):
        text, n_tokens = _replace(_TOKEN, _is_token, "<SECRET>", text)
    if "secret" in text.lower():
        text = _ASSIGNED.sub(assigned, text)
    return text, found + n_tokens


def _emails(text: str) -> Replaced:
    return _replace(_EMAIL, _is_email, "<EMAIL>", text) if "@" in text else (text, 0)


def _addresses(text: str) -> Replaced:
    text, four = _replace(_IPV4, _is_public_ipv4, "<IP_ADDRESS>", text)
    text, six = _replace(_IPV6, _is_public_ipv6, "<IP_ADDRESS>", text) if ":" in text else (text, 0)
    return text, four + six


# In this order: a secret may hold digits that look like a card, an IBAN digits that look like a phone number.
KINDS: dict[str, Callable[[str], Replaced]] = {
    "secret": _secrets,
    "email": _emails,
    "iban": lambda text: _replace(_IBAN, _is_iban, "<IBAN>", text),
    "card": lambda text: _replace(_CARD, _is_card, "<CARD>", text),
    "ip": _addresses,
    "phone": lambda text: _replace(_PHONE, _is_phone, "<PHONE>", text),
}


def kinds(names: Iterable[str]) -> tuple[str, ...]:
    """The named kinds in the order in which they are looked for; raises MoelineError for an unknown one."""
    names = tuple(names)
    unknown = sorted(set(names) - KINDS.keys())
    if unknown:
        raise MoelineError(f"CleanConfig.redact names {', '.join(map(repr, unknown))}. What can be redacted: {', '.join(sorted(KINDS))}.")
    return tuple(kind for kind in KINDS if kind in names)


def redact(text: str, names: Iterable[str] = tuple(KINDS)) -> tuple[str, dict[str, int]]:
    """The text with placeholders, and how many values of each kind they stand for."""
    counts = {}
    for kind in kinds(names):
        text, counts[kind] = KINDS[kind](text)
    return text, counts
