"""The one table of languages: what a code stands for."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from lingact.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language by its ISO 639-1 code; `flores` is its code in FLORES+, `branch` the clade for leave-one-branch-out statistics."""

    code: str
    name: str
    flores: str
    script: str
    branch: str


_TABLE = (
    Language("en", "English", "eng_Latn", "Latin", "Germanic"),
    Language("zh", "Chinese", "cmn_Hans", "Han", "Sinitic"),
    Language("ru", "Russian", "rus_Cyrl", "Cyrillic", "Slavic"),
    Language("es", "Spanish", "spa_Latn", "Latin", "Romance"),
    Language("it", "Italian", "ita_Latn", "Latin", "Romance"),
    Language("id", "Indonesian", "ind_Latn", "Latin", "Malayic"),
    Language("ca", "Catalan", "cat_Latn", "Latin", "Romance"),
    Language("mr", "Marathi", "mar_Deva", "Devanagari", "Indo-Aryan"),
    Language("ml", "Malayalam", "mal_Mlym", "Malayalam", "Dravidian"),
    Language("hi", "Hindi", "hin_Deva", "Devanagari", "Indo-Aryan"),
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
