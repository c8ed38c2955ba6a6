"""The table of languages: their codes, here and in collections of text."""

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lingact.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language, or one of its scripts or varieties, and its codes."""

    code: str
    """lingact's code: ISO 639-1 if there is one, else ISO 639-3, with a suffix for an unusual script or variety (`zh_Hant`, `ca_vale1252`)."""
    name: str
    flores: str
    """Code in the notation of FLORES+ (ISO 639-3, script, glottocode of a variety), whether or not FLORES+ has the language."""
    script: str
    branch: str
    """Clade, for leave-one-branch-out statistics."""
    web_share: float | None
    """Percentage of the HTML pages of the crawl CC-MAIN-2024-18 (April 2024) that CLD2 identifies as mainly in this language.

    It approximates the language's share of a model's training text, which is seldom published. None: CLD2 does not know the language, cannot
    distinguish it from another row of the table (Kurdish, Akan), or found less than 0.00005 %. A figure for several varieties (Arabic, Serbian in
    both scripts) is in the row without a suffix. Source: Common Crawl, statistics of monthly archives,
    https://github.com/commoncrawl/cc-crawl-statistics, `plots/languages.csv`, column `%pages/crawl` (the codes there are ISO 639-3).
    """
    flores_200: str
    """Code in FLORES-200 and data sets derived from it, such as Belebele."""
    ntrex: str
    """Code in NTREX-128 as it is on the hub."""
    opus: str | None
    """Code in OPUS-100. None: the corpus does not distinguish scripts or varieties."""
    tatoeba: str | None
    """Code in MTEB's Tatoeba pairs; None as for `opus`."""


_TABLE = Path(str(files("lingact"))) / "assets" / "languages.tsv"


def _read_table() -> dict[str, Language]:
    """Read the table. A cell is empty if a collection's code follows from the others, or if a share is not known."""
    found = {}
    for row in csv.DictReader(_TABLE.read_text(encoding="utf-8").splitlines(), delimiter="\t"):
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
    """A hint that names the option closest to `word`; empty if none is close."""
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
    # With only two or three letters, a code that differs in one is another language.
    close = difflib.get_close_matches(code.lower(), names, n=1, cutoff=0.7) if len(code) > 3 else []
    meant = names.get(code.lower()) or (names[close[0]] if close else None)
    hint = f"; did you mean '{meant}'?" if meant else ""
    first = ", ".join(list(LANGUAGES)[:10])
    raise UserError(
        f"unknown language '{code}'{hint} (known: {first} and {len(LANGUAGES) - 10} more, by ISO 639-1 code, else ISO 639-3; all are in '{_TABLE}')"
    )


def _other_names() -> dict[str, str]:
    """Other names and codes of languages in lower case -> the code in the table; if several languages share a name, the first one."""
    found = {"nb": "no"}  # Bokmål has one row, under the code that most corpora use
    for entry in LANGUAGES.values():
        iso3, script = entry.flores.split("_")[:2]
        others = (entry.name, entry.flores, entry.flores_200, entry.ntrex, iso3, f"{iso3}-{script}", f"{entry.code}_{script}", entry.code)
        for name in (*others, entry.tatoeba or "", entry.flores_200.partition("_")[0]):
            found.setdefault(name.lower(), entry.code)
    return found
