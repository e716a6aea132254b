# ruff: noqa: RUF001 - letters of other scripts are what is tested
"""Language identification with the model that ships in its package: invented sentences, mixed and empty texts, rule sets by name."""

from __future__ import annotations

import json

import pytest

from jobs.config import CleanConfig
from jobs.contract import MoelineError
from jobs.stages import rules
from jobs.stages.clean import Judge
from jobs.stages.rules.language import SAMPLE_CHARACTERS, SAMPLE_PIECES, Identifier, sample

pytest.importorskip("py3langid", reason="py3langid is not installed: run `make setup`")
SENTENCES = {
    "en": "The train was late again this morning, so we walked along the river and talked about the summer.",
    "de": "Der Zug hatte heute Morgen wieder Verspätung, also gingen wir am Fluss entlang und sprachen über den Sommer.",
    "fr": "Le train était encore en retard ce matin, alors nous avons marché le long de la rivière en parlant de l'été.",
    "es": "El tren llegó tarde otra vez esta mañana, así que caminamos junto al río y hablamos del verano.",
    "pt": "O comboio atrasou-se outra vez esta manhã, por isso caminhámos junto ao rio e falámos do verão.",
    "nl": "De trein was vanmorgen weer te laat, dus liepen we langs de rivier en praatten over de zomer.",
    "da": "Toget var forsinket igen i morges, så vi gik langs floden og talte om sommeren.",
    "pl": "Pociąg znowu spóźnił się dziś rano, więc poszliśmy wzdłuż rzeki i rozmawialiśmy o lecie.",
    "tr": "Tren bu sabah yine gecikti, biz de nehir boyunca yürüdük ve yaz hakkında konuştuk.",
    "ru": "Поезд сегодня утром снова опоздал, поэтому мы пошли вдоль реки и говорили о лете.",
    "uk": "Потяг сьогодні вранці знову запізнився, тому ми пішли вздовж річки й говорили про літо.",
    "ar": "تأخر القطار مرة أخرى هذا الصباح، فمشينا على طول النهر وتحدثنا عن الصيف.",
    "hi": "आज सुबह ट्रेन फिर देर से आई, इसलिए हम नदी के किनारे चले और गर्मियों के बारे में बात की।",
    "ja": "今朝もまた電車が遅れたので、私たちは川沿いを歩きながら夏の話をしました。",
    "ko": "오늘 아침에도 기차가 늦어서 우리는 강을 따라 걸으며 여름 이야기를 했습니다.",
    "zh": "今天早上火车又晚点了，所以我们沿着河边走，聊起了夏天。",
}


@pytest.fixture(scope="module")
def identify() -> Identifier:
    return Identifier()


@pytest.mark.parametrize("code", SENTENCES)
def test_one_sentence_is_enough(identify, code):
    found = identify(SENTENCES[code])
    assert next(iter(found)) == code
    assert found[code] > 0.65
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)


def test_a_rule_set_keeps_its_languages_and_scores_every_text():
    def judged(sets: tuple[str, ...], text: str):
        kept, _, scores, broken = Judge(CleanConfig(rules=(("*", sets),)))("web", None, text)
        return kept is not None, json.loads(scores), {entry["rule"] for entry in broken}

    kept, scores, broken = judged(("english",), SENTENCES["en"])
    assert (kept, scores["language"], broken) == (True, "en", set())
    assert scores["english.probability"] == scores["english.wanted_probability"] > 0.9
    kept, scores, broken = judged(("english",), SENTENCES["de"])
    assert (kept, scores["language"], broken) == (False, "de", {"english.wanted_probability"})
    for code in ("de", "fr"):
        assert judged(("language:de+fr",), SENTENCES[code])[0]
    assert not judged(("language:de+fr",), SENTENCES["en"])[0]
    assert judged(("language",), SENTENCES["tr"])[:2] == (True, {**judged(("language",), SENTENCES["tr"])[1], "language": "tr"})
    assert judged(("language",), "12 34 ++")[1]["language"] == "und"
    assert "language" not in judged((), SENTENCES["en"])[1]


def test_an_unknown_language_is_refused():
    with pytest.raises(MoelineError, match=r"'language:de\+xx' names unknown languages 'xx'\. Known are .*, de, "):
        rules.select(("language:de+xx",))


def test_a_long_text_is_sampled_evenly(identify):
    text = SENTENCES["en"] * 15 + SENTENCES["de"] * 900
    assert len(sample(text)) == SAMPLE_PIECES * SAMPLE_CHARACTERS + SAMPLE_PIECES - 1
    assert sample(text).endswith(text[-SAMPLE_CHARACTERS:])
    assert next(iter(identify(text))) == "de"
    assert sample("short") == "short"
