"""FineWeb's own quality rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6 and table 2).

Where paper and released code differ the code is followed, because it made the data set: exactly at a threshold a document is
kept (the paper drops there), and characters in duplicate lines are limited to 0.01 (table 2 and code; the paper's body says 0.1).
A line ends in punctuation when its last character does, so a line with trailing blanks does not.
"""

from __future__ import annotations

from jobs.stages.rules.features import Features, share
from jobs.stages.rules.gopher import duplicates
from jobs.stages.rules.rule import Rule

# Characters that end a sentence in any script: the Unicode property Sentence_Terminal (PropList.txt) and the Khmer signs that
# FineWeb-2 adds. Hexadecimal code points and ranges.
_SENTENCE_TERMINAL = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 17D9-17DA 1803 1809 1944-1945 "
    "1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 203C-203D 2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF "
    "A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 "
    "10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C "
    "115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 "
    "16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88"
)
TERMINAL_PUNCTUATION = frozenset(
    chr(code)
    for span in _SENTENCE_TERMINAL.split()
    for code in range(int(span.split("-")[0], 16), int(span.split("-")[-1], 16) + 1)
)  # fmt: skip


def punctuated_line_share(features: Features) -> float:
    """Share of non-blank lines whose last character ends a sentence."""
    lines = features.full_lines
    return share(sum(line[-1] in TERMINAL_PUNCTUATION for line in lines), len(lines))


def short_line_share(features: Features, length: int) -> float:
    """Share of non-blank lines of at most ``length`` characters."""
    lines = features.full_lines
    return share(sum(len(line) <= length for line in lines), len(lines))


def duplicate_line_char_share(features: Features) -> float:
    """Characters of non-blank lines that repeat an earlier one, over all characters but line ends."""
    return share(duplicates(features.full_lines)[1], len(features.text) - features.text.count("\n"))


def newlines_per_word(features: Features) -> float:
    return share(features.text.count("\n"), len(features.words))


def rules(
    *,
    min_punctuated_lines: float = 0.12,  # table 2
    max_short_lines: float = 0.67, short_line: int = 30,  # table 2
    max_duplicate_line_chars: float = 0.01,  # table 2
    max_newlines_per_word: float = 0.3,  # released code only
) -> tuple[Rule, ...]:  # fmt: skip
    return (
        Rule("fineweb.punctuated_line_share", punctuated_line_share, minimum=min_punctuated_lines),
        Rule("fineweb.short_line_share", lambda features: short_line_share(features, short_line), maximum=max_short_lines),
        Rule("fineweb.duplicate_line_char_share", duplicate_line_char_share, maximum=max_duplicate_line_chars),
        Rule("fineweb.newlines_per_word", newlines_per_word, maximum=max_newlines_per_word),
    )
