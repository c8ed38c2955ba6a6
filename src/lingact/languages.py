"""The one table of languages: what a code stands for."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from lingact.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language by its ISO 639-1 code."""

    code: str
    name: str
    flores: str
    """Code in FLORES+."""
    script: str
    branch: str
    """Clade, for leave-one-branch-out statistics."""
    web_share: float
    """Percent of the HTML pages of the crawl CC-MAIN-2024-18 (April 2024) whose primary language CLD2 takes it for.

    A stand-in for the language's share of a model's training text, which is seldom published. Source: Common Crawl, statistics of monthly archives,
    https://github.com/commoncrawl/cc-crawl-statistics, `plots/languages.csv`, column `%pages/crawl` (the codes there are ISO 639-3).
    """


_TABLE = (
    Language("en", "English", "eng_Latn", "Latin", "Germanic", 45.5105),
    Language("zh", "Chinese", "cmn_Hans", "Han", "Sinitic", 4.4238),
    Language("ru", "Russian", "rus_Cyrl", "Cyrillic", "Slavic", 5.9477),
    Language("es", "Spanish", "spa_Latn", "Latin", "Romance", 4.5941),
    Language("it", "Italian", "ita_Latn", "Latin", "Romance", 2.612),
    Language("id", "Indonesian", "ind_Latn", "Latin", "Malayic", 0.919),
    Language("ca", "Catalan", "cat_Latn", "Latin", "Romance", 0.2036),
    Language("mr", "Marathi", "mar_Deva", "Devanagari", "Indo-Aryan", 0.0247),
    Language("ml", "Malayalam", "mal_Mlym", "Malayalam", "Dravidian", 0.0221),
    Language("hi", "Hindi", "hin_Deva", "Devanagari", "Indo-Aryan", 0.1859),
)
LANGUAGES: dict[str, Language] = {language.code: language for language in _TABLE}


def nearest(word: str, options: Iterable[str]) -> str:
    """A hint at the option that `word` was meant to be, or nothing."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def language(code: str) -> Language:
    """The language of a code.

    Raises:
        UserError: the code is not in the table.
    """
    if code in LANGUAGES:
        return LANGUAGES[code]
    by_name = {entry.name.lower(): entry.code for entry in _TABLE} | {entry.flores.lower(): entry.code for entry in _TABLE}
    named = by_name.get(code.lower())
    hint = f"; did you mean '{named}'?" if named else nearest(code, LANGUAGES)
    raise UserError(f"unknown language '{code}'{hint} (known: {', '.join(LANGUAGES)})")
