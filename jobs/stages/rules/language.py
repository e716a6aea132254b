"""Which language a text is in: py3langid's model, which ships in its package (140 languages, naive Bayes over byte n-grams).

Why py3langid: BSD licence for code and weights, one wheel for every Python, only numpy beneath it, no download, and probabilities that
mean the same for short and long texts. Measured on one core beside it (30 sentences in 30 languages, 793 pieces of 200 and 2,612 of 40 characters in
20 languages, 253 English READMEs): py3langid 1.3 to 3.8 MB/s, 98.8 % of the 40-character pieces right and all of the rest, one README below
0.65; fastText's lid.176.ftz 3.1 to 4.9 MB/s, 98.7 % and all of the rest, but 53 READMEs below 0.65, weights under CC-BY-SA and a downloader
beneath the package that ships them; resiliparse up to 140 MB/s, but 72 % and 87 % of the pieces; lingua 0.06 to 0.5 MB/s and 96 MB.
Only a sample of a long text is read, so that a long text costs no more than a page.
"""

from __future__ import annotations

from typing import Any

from jobs.contract import MoelineError
from jobs.stages.rules.features import Features
from jobs.stages.rules.rule import Rule

SAMPLE_PIECES, SAMPLE_CHARACTERS = 4, 1000
UNDETERMINED = "und"
_PREFIX = "language:"
_NO_OPINION = 0.1  # all languages are about equally likely: nothing in the text is known to the model


class Identifier:
    """The model, loaded when first asked (half a second)."""

    def __init__(self) -> None:
        self._model: Any = None

    def _loaded(self) -> Any:
        if self._model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        return self._model

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639 codes the model knows."""
        return tuple(sorted(self._loaded().labels))

    def __call__(self, text: str) -> dict[str, float]:
        """Probability by language, most likely first."""
        return dict(self._loaded().rank(sample(text)))


def sample(text: str) -> str:
    """The text, or evenly spaced pieces of a long one: a licence at its head must not speak for all of it."""
    if len(text) <= SAMPLE_PIECES * SAMPLE_CHARACTERS:
        return text
    starts = [i * (len(text) - SAMPLE_CHARACTERS) // (SAMPLE_PIECES - 1) for i in range(SAMPLE_PIECES)]
    return "\n".join(text[start : start + SAMPLE_CHARACTERS] for start in starts)


def language(features: Features) -> str:
    """The most likely language, or ``und``."""
    code, probability = next(iter(features.languages.items()))
    return code if probability > _NO_OPINION else UNDETERMINED


def language_probability(features: Features) -> float:
    return next(iter(features.languages.values()))


def is_language_set(name: str) -> bool:
    return name in ("english", "language") or name.startswith(_PREFIX)


def rules(name: str, *, min_probability: float = 0.65) -> tuple[Rule, ...]:
    """``language`` (a score only), ``english``, or ``language:de+fr`` (German and French together).

    0.65 is FineWeb's threshold (Penedo et al. 2024, section 3.2). Raises MoelineError for a language the model does not know.
    """
    scored = (Rule(f"{name}.probability", language_probability),)
    if name == "language":
        return scored
    wanted = ("en",) if name == "english" else tuple(name.removeprefix(_PREFIX).split("+"))
    if name != "english":
        known = Identifier().languages
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise MoelineError(f"Rule set {name!r} names unknown languages {', '.join(map(repr, unknown))}. Known are {', '.join(known)}; join them with '+'.")
    return (*scored, Rule(f"{name}.wanted_probability", lambda features: sum(features.languages.get(code, 0.0) for code in wanted), minimum=min_probability))
