"""When two texts are the same, and what their words are."""

import unicodedata

import regex

_WORD_BOUNDARY, _WORDLIKE = regex.compile(r"(?wV1)\b"), regex.compile(r"[\p{L}\p{N}]")


# Spellings of one letter that Unicode does not make equivalent, decomposed: consonant, virama and ZWJ, and the letter that replaced them.
_LETTERS = {
    # Chillus of Malayalam (The Unicode Standard, section 12.9, "Legacy Encoding of Chillus" and the table of it): n n r l l k, and m y lll of
    # Unicode 9.0, which had no sequence in use but are formed alike.
    "\u0d23\u0d4d\u200d": "\u0d7a",
    "\u0d28\u0d4d\u200d": "\u0d7b",
    "\u0d30\u0d4d\u200d": "\u0d7c",
    "\u0d32\u0d4d\u200d": "\u0d7d",
    "\u0d33\u0d4d\u200d": "\u0d7e",
    "\u0d15\u0d4d\u200d": "\u0d7f",
    "\u0d2e\u0d4d\u200d": "\u0d54",
    "\u0d2f\u0d4d\u200d": "\u0d55",
    "\u0d34\u0d4d\u200d": "\u0d56",
    # Eyelash ra of Marathi and Nepali, ra and rra (section 12.1, rule R5a).
    "\u0930\u094d\u200d": "\u0930\u093c\u094d",
    # Khanda ta of Bengali (section 12.2).
    "\u09a4\u09cd\u200d": "\u09ce",
}
_OLD_LETTERS = regex.compile("|".join(_LETTERS))
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def folded(text: str) -> str:
    """A text as it is compared with others: without differences of case, of Unicode form, and of characters that are not seen. Spaces stay.

    NFKC_Casefold (The Unicode Standard, section 3.13, D146): canonical and compatibility forms are one (NFD, composed nukta, full width), and
    default-ignorable characters are nothing (ZWJ, ZWNJ, soft hyphen, zero-width space, byte-order mark, variation selectors). Before that, old
    sequences with ZWJ become the letters that have replaced them (`_LETTERS`), which no normalisation form does.
    """
    if text.isascii():
        return text.lower()
    new = _OLD_LETTERS.sub(lambda old: _LETTERS[old[0]], unicodedata.normalize("NFD", text))
    seen = _INVISIBLE.sub("", unicodedata.normalize("NFKC", new).casefold())
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", unicodedata.normalize("NFKC", seen).casefold()))


def plain(text: str) -> str:
    """By which sentences are the same: `folded`, with one space where there are any."""
    return " ".join(folded(text).split())


def words_of(text: str) -> list[str]:
    """Words by Unicode's word boundaries (UAX #29): stretches with a letter or digit; every Han character is one."""
    return [part for part in _WORD_BOUNDARY.split(text) if _WORDLIKE.search(part)]


def word_count(text: str) -> int:
    """Number of `words_of` a text."""
    return len(words_of(text))
