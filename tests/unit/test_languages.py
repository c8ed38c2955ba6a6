"""The table of languages: whom it covers, that its codes are unique and survive YAML, and what is said of others."""

from pathlib import Path

import lm_eval.tasks
import pytest
import yaml

from lingact.catalogue.benchmarks import FAMILIES, entry
from lingact.catalogue.languages import LANGUAGES, Language, language
from lingact.config.data import LanguagesConfig
from lingact.errors import UserError

TEN = {
    "en": ("English", "eng_Latn", "Latin", "Germanic", 45.5105),
    "zh": ("Chinese", "cmn_Hans", "Han", "Sinitic", 4.4238),
    "ru": ("Russian", "rus_Cyrl", "Cyrillic", "Slavic", 5.9477),
    "es": ("Spanish", "spa_Latn", "Latin", "Romance", 4.5941),
    "it": ("Italian", "ita_Latn", "Latin", "Romance", 2.612),
    "id": ("Indonesian", "ind_Latn", "Latin", "Malayic", 0.919),
    "ca": ("Catalan", "cat_Latn", "Latin", "Romance", 0.2036),
    "mr": ("Marathi", "mar_Deva", "Devanagari", "Indo-Aryan", 0.0247),
    "ml": ("Malayalam", "mal_Mlym", "Malayalam", "Dravidian", 0.0221),
    "hi": ("Hindi", "hin_Deva", "Devanagari", "Indo-Aryan", 0.1859),
}


def test_the_ten_of_the_paper_come_first_and_stay_as_they_are() -> None:
    first = list(LANGUAGES.values())[:10]
    assert {e.code: (e.name, e.flores, e.script, e.branch, e.web_share) for e in first} == TEN
    assert list(TEN) == [e.code for e in first]


def test_it_covers_flores_200_and_what_belebele_adds() -> None:
    in_200 = {e.flores_200 for e in LANGUAGES.values()}
    assert len(in_200) == len(LANGUAGES)
    files = Path(lm_eval.tasks.__file__).parent.glob("belebele/belebele_*.yaml")
    belebele = {file.stem.removeprefix("belebele_") for file in files}
    assert len(belebele) == 122
    assert belebele <= in_200
    assert {entry(FAMILIES["belebele"], code).task.removeprefix("belebele_") for code in LANGUAGES} >= belebele
    # One of each continent and of each oddity: names that FLORES+ changed, several scripts, varieties.
    assert {"quy_Latn", "est_Latn", "zho_Hant", "ajp_Arab", "aka_Latn", "kon_Latn", "tzm_Tfng", "grn_Latn", "tgl_Latn", "smo_Latn"} <= in_200
    plus = {e.flores for e in LANGUAGES.values()}
    assert {"ekk_Latn", "cmn_Hant", "apc_Arab_sout3123", "twi_Latn_akua1239", "ktu_Latn", "zgh_Tfng", "gug_Latn", "fil_Latn", "khk_Mong"} <= plus


@pytest.mark.parametrize("column", ["code", "name", "flores", "flores_200", "ntrex", "opus", "tatoeba"])
def test_no_two_languages_share_a_code(column: str) -> None:
    values = [value for e in LANGUAGES.values() if (value := getattr(e, column)) is not None]
    shared = {value for value in values if values.count(value) > 1}
    assert shared == ({"apc", "twi"} if column == "tatoeba" else set()), "varieties that Tatoeba has nothing of"


def test_no_code_is_something_else_in_yaml_but_the_one_that_is_handled() -> None:
    assert {code: read for code in LANGUAGES if (read := yaml.safe_load(code)) != code} == {"no": False}
    plain = yaml.safe_load("{reference: en, high: [no], low: [nn, ne, ny, yo]}")
    assert LanguagesConfig.model_validate(plain).all == ("en", "no", "nn", "ne", "ny", "yo")
    assert language("no").flores == "nob_Latn"


def test_a_suffix_tells_scripts_and_varieties_apart() -> None:
    suffixed = [e for e in LANGUAGES.values() if "_" in e.code]
    for e in suffixed:
        assert e.code.partition("_")[0] in LANGUAGES
        assert e.code.partition("_")[2] in e.flores
        assert (e.opus, e.tatoeba, e.web_share) == (None, None, None)
    assert {"zh_Hant", "sr_Latn", "hi_Latn", "ks_Deva", "ca_vale1252"} <= {e.code for e in suffixed}


def codes(entry: Language) -> tuple[str | None, ...]:
    return (entry.flores, entry.flores_200, entry.ntrex, entry.opus, entry.tatoeba)


def test_how_collections_call_a_language() -> None:
    assert codes(LANGUAGES["ml"]) == ("mal_Mlym", "mal_Mlym", "mal_Mlym", "ml", "mal")
    assert codes(LANGUAGES["et"]) == ("ekk_Latn", "est_Latn", "est_Latn", "et", "est")
    assert codes(LANGUAGES["zh"]) == ("cmn_Hans", "zho_Hans", "zho_Hans", "zh", "cmn")
    assert codes(LANGUAGES["zh_Hant"]) == ("cmn_Hant", "zho_Hant", "zho_Hant", None, None)
    assert codes(LANGUAGES["no"]) == ("nob_Latn", "nob_Latn", "nob_Latn", "no", "nob")


def test_shares_are_known_or_not_there_at_all() -> None:
    assert LANGUAGES["de"].web_share == 5.2631
    assert [LANGUAGES[code].web_share for code in ("quy", "ku", "ckb", "ss")] == [None] * 4, "not told apart, or 0.0000 in the source"
    assert 96 < sum(e.web_share or 0 for e in LANGUAGES.values()) < 100


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Malayalam", "ml"),
        ("malayalm", "ml"),
        ("mal", "ml"),
        ("mal_Mlym", "ml"),
        ("zho_Hans", "zh"),
        ("zh_Hans", "zh"),
        ("cmn-Hant", "zh_Hant"),
        ("est_Latn", "et"),
        ("nb", "no"),
        ("Norwegian", "no"),
        ("EN", "en"),
    ],
)
def test_what_else_a_language_is_called_leads_to_its_code(given: str, meant: str) -> None:
    with pytest.raises(
        UserError, match=f"^unknown language '{given}'; did you mean '{meant}'\\? \\(known: en, zh, ru, es, it, id, ca, mr, ml, hi and "
    ):
        language(given)


def test_of_short_codes_none_is_guessed() -> None:
    with pytest.raises(UserError, match=r"^unknown language 'xx' \(known: en, "):
        language("xx")
