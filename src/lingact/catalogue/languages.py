"""The one table of languages: what a code stands for, and how collections of text call it."""

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from lingact.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language, or one of its scripts or varieties, and its codes."""

    code: str
    """Ours: ISO 639-1 where there is one, else ISO 639-3; with a suffix where it is not the usual script or variety (`zh_Hant`, `ca_vale1252`)."""
    name: str
    flores: str
    """In the notation of FLORES+ (ISO 639-3, script, glottocode of a variety), whether or not FLORES+ has it."""
    script: str
    branch: str
    """Clade, for leave-one-branch-out statistics."""
    web_share: float | None
    """Percent of the HTML pages of the crawl CC-MAIN-2024-18 (April 2024) whose primary language CLD2 takes it for.

    A stand-in for the language's share of a model's training text, which is seldom published. None: CLD2 does not know it, tells it from no other row
    of the table (Kurdish, Akan), or found less than 0.00005 %. A figure for several varieties (Arabic, Serbian in both scripts) stands at the row
    without a suffix. Source: Common Crawl, statistics of monthly archives, https://github.com/commoncrawl/cc-crawl-statistics,
    `plots/languages.csv`, column `%pages/crawl` (the codes there are ISO 639-3).
    """
    flores_200: str
    """In FLORES-200, and in what was made of it, such as Belebele."""
    ntrex: str
    """In NTREX-128 as it lies on the hub."""
    opus: str | None
    """In OPUS-100. None: it tells no scripts or varieties apart."""
    tatoeba: str | None
    """In MTEB's Tatoeba pairs; None as above."""


def _read_table() -> dict[str, Language]:
    """Cells are empty where a collection's code follows from the others, and where a share is not known."""
    found = {}
    text = (files("lingact") / "assets" / "languages.tsv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        code, flores, usual = row["code"], row["flores"], "_" not in row["code"]
        found[code] = Language(
            code,
            row["name"],
            flores,
            row["script"],
            row["branch"],
            float(row["web_share"]) if row["web_share"] else None,
            flores_200=row["flores_200"] or flores,
            ntrex=row["ntrex"] or flores,
            opus=code if usual else None,
            tatoeba=row["tatoeba"] or flores.partition("_")[0] if usual else None,
        )
    return found


LANGUAGES: dict[str, Language] = _read_table()


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
    names = _other_names()
    # Of two or three letters, one that differs makes another language.
    close = difflib.get_close_matches(code.lower(), names, n=1, cutoff=0.7) if len(code) > 3 else []
    meant = names.get(code.lower()) or (names[close[0]] if close else None)
    hint = f"; did you mean '{meant}'?" if meant else ""
    first = ", ".join(list(LANGUAGES)[:10])
    raise UserError(
        f"unknown language '{code}'{hint} (known: {first} and {len(LANGUAGES) - 10} more, by ISO 639-1 code, else ISO 639-3; "
        "all in src/lingact/assets/languages.tsv)"
    )


def _other_names() -> dict[str, str]:
    """What else a language is called, in lower case -> its code; of a name that several have, the first."""
    found = {"nb": "no"}  # one row for Bokmål, under the code that most corpora use
    for entry in LANGUAGES.values():
        iso3, script = entry.flores.split("_")[:2]
        others = (entry.name, entry.flores, entry.flores_200, entry.ntrex, iso3, f"{iso3}-{script}", f"{entry.code}_{script}", entry.code)
        for name in (*others, entry.tatoeba or "", entry.flores_200.partition("_")[0]):
            found.setdefault(name.lower(), entry.code)
    return found
