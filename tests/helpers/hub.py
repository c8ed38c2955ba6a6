"""Small data sets as they lie on the Hugging Face hub: the layout, columns and oddities of the real ones, with sentences of our own.

A folder `owner/name` in the current directory is to `datasets` the data set of that name, so that the same files serve lm-eval and us without a hub.
"""

import csv
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml

ITEMS = 12
NTREX_LINES = 1997
FLORES = {"en": "eng_Latn", "ml": "mal_Mlym", "hi": "hin_Deva"}
WORDS = {
    "en": [
        "the",
        "dog",
        "old",
        "market",
        "river",
        "reads",
        "blue",
        "water",
        "bread",
        "on",
        "Monday",
        "night",
        "sings",
        "a",
        "red",
        "car",
        "rain",
        "five",
        "window",
    ],
    "ml": ["നായ", "പഴയ", "ചന്ത", "പുഴ", "വായിക്കുന്നു", "നീല", "വെള്ളം", "അപ്പം", "തിങ്കളാഴ്ച", "രാത്രി", "പാടുന്നു", "ഒരു", "ചുവന്ന", "കാർ", "മഴ", "അഞ്ച്", "ജനൽ"],
    "hi": ["कुत्ता", "पुराना", "बाज़ार", "नदी", "पढ़ता", "नीला", "पानी", "रोटी", "सोमवार", "रात", "गाती", "एक", "लाल", "गाड़ी", "बारिश", "पाँच", "खिड़की"],
    "zh": ["狗", "旧", "市场", "河", "读", "蓝", "水", "面包", "星期一", "夜", "唱", "一", "红", "车", "雨", "五", "窗"],
}
Rows = list[dict[str, Any]]


def words(code: str, count: int, seed: str) -> str:
    """As many words, always the same ones."""
    return " ".join(random.Random(seed).choices(WORDS[code], k=count))


def _options(code: str, seed: str) -> list[str]:
    """Four options of one to five words, so that their likelihood and their likelihood per character differ in what they prefer."""
    return [words(code, 1 + (place * 3 + len(seed)) % 5, f"{seed}/{place}") for place in range(4)]


def m_arc(code: str, split: str) -> Rows:
    """Okapi's ARC: letters for answers, `option_e` mostly null, some texts in brackets, here and there an option that is empty."""
    rows = []
    for place in range(ITEMS):
        seed = f"arc/{code}/{split}/{place}"
        options = [*_options(code, seed), words(code, 2, f"{seed}/e") if place == 3 else None]
        answer = "ABCD"[place % 4]
        if place == 5:
            options[1], answer = "", "D"  # the letter is no place among the options that are left
        if place == 6:
            options[1], answer = "", "C"
        if place == 7:
            options[0] = f"{words(code, 1, seed)} [{words(code, 2, seed)}] "
        asked = words(code, 5, seed) + (" [sic]  " if place in (2, 7) else "?")
        letters = {f"option_{letter}": option for letter, option in zip("abcde", options, strict=True)}
        rows.append({"id": f"ARC-Challenge/{split}/Mercury_{place}", "answer": answer, "instruction": asked, **letters})
    return rows


def ai2_arc(code: str, split: str) -> Rows:
    """The original ARC, also Sarvam's: labels are letters, in some items numbers."""
    rows = []
    for place in range(ITEMS):
        seed = f"ai2/{code}/{split}/{place}"
        labels = list("1234" if place == 4 else "ABCD")
        choices = {"text": _options(code, seed), "label": labels}
        rows.append({"id": f"Mercury_{place}", "question": words(code, 5, seed) + "?", "choices": choices, "answerKey": labels[place % 4]})
    return rows


def hellaswag(code: str, split: str) -> Rows:
    """Rowan's columns: what comes first, the beginning of the second sentence, and headings of WikiHow in brackets. Labels are text."""
    rows = []
    for place in range(ITEMS):
        seed = f"swag/{code}/{split}/{place}"
        first, second = words(code, 4, seed), words(code, 2, f"{seed}/b").lower()
        endings = _options(code, seed)
        if place % 3 == 0:
            first, endings[2] = f"[header] {first} [title] {first}", f"{endings[2]} [step] {endings[2]}"
        row = {"ind": place, "activity_label": words(code, 2, f"{seed}/a"), "ctx_a": first, "ctx_b": second, "ctx": f"{first} {second}"}
        whence = f"{'wikihow' if place % 3 == 0 else 'activitynet'}~v_{place}"
        rows.append(row | {"endings": endings, "source_id": whence, "split": split, "split_type": "indomain", "label": str((place * 7 + 1) % 4)})
    return rows


def m_hellaswag(code: str, split: str) -> Rows:
    """Okapi's HellaSwag: the same and an id; a label can begin with a space."""
    rows = [row | {"id": f"hellaswag/validation/{place}"} for place, row in enumerate(hellaswag(code, split))]
    rows[2]["label"] = f" {rows[2]['label']}"
    return rows


def m_mmlu(code: str, split: str) -> Rows:
    rows = []
    for place in range(ITEMS):
        seed = f"mmlu/{code}/{split}/{place}"
        letters = {f"option_{letter}": option for letter, option in zip("abcd", _options(code, seed), strict=True)}
        subject = "anatomy" if place % 2 else "virology"
        rows.append({"id": f"{subject}/{split}/{place}", "answer": "ABCD"[place * 3 % 4], "instruction": f" {words(code, 6, seed)}?", **letters})
    return rows


def belebele(code: str, split: str) -> Rows:
    """Two questions to a passage; the right answer's number is text, the date a timestamp."""
    rows = []
    for place in range(ITEMS):
        link, seed = f"https://example.org/{place // 2}", f"bele/{code}/{place}"
        answers = {f"mc_answer{number}": option for number, option in enumerate(_options(code, seed), start=1)}
        row = {"link": link, "question_number": 1 + place % 2, "flores_passage": words(code, 14, f"passage/{code}/{place // 2}")}
        row |= {"question": f"{words(code, 5, seed)}? ", **answers, "correct_answer_num": "1234"[place * 5 % 4], "dialect": FLORES[code]}
        rows.append(row | {"ds": "2023-05-03"})
    return rows


def global_piqa(code: str, split: str) -> Rows:
    rows = []
    for place in range(ITEMS):
        seed = f"piqa/{code}/{place}"
        solutions = {f"solution{number}": option for number, option in enumerate(_options(code, seed))}
        row = {"prompt": words(code, 5, seed), **solutions, "label": (place * 3 + 2) % 4, "categories": "material" if place % 2 else "tools"}
        rows.append(row | {"example_id": f"{place:04}", "supplement": json.dumps({"example_inspiration": ""})})
    return rows


def flores_plus(code: str, split: str) -> Rows:
    rows = []
    for place in range(ITEMS):
        row = {"id": place, "iso_639_3": FLORES[code][:3], "iso_15924": FLORES[code][4:], "glottocode": "xxxx1234", "variant": ""}
        url = f"https://example.org/{place // 3}"
        rows.append(row | {"text": words(code, 8, f"flores/{split}/{place}"), "url": url, "domain": "wikinews", "topic": "none"})
    return rows


def ntrex(code: str, split: str) -> Rows:
    """Nothing but lines, as many as there are, one of which comes twice."""
    return [{"text": words(code, 9, f"ntrex/{place % (NTREX_LINES - 1)}")} for place in range(NTREX_LINES)]


def opus_100(code: str, split: str) -> Rows:
    """Subtitles and the like: one sentence in two translations, one that is not translated, one that is empty."""
    pairs = [(words("en", 4, f"opus/{place}"), words(code, 4, f"opus/{place}")) for place in range(ITEMS)]
    pairs[4], pairs[7], pairs[9] = (pairs[3][0], pairs[4][1]), ("Linux", "Linux"), ("", pairs[9][1])
    return [{"translation": {"en": en, code: other}} for en, other in pairs]


def tatoeba(code: str, split: str) -> Rows:
    return [
        {"sentence1": row["translation"][code], "sentence2": row["translation"]["en"], "lang": f"{FLORES[code][:3]}-eng"}
        for row in opus_100(code, split)
    ]


def write_dataset(folder: Path, parts: Mapping[str, Mapping[str, Rows]], ending: str, place: str = "data/{part}/{split}") -> None:
    """A data set's folder: a card that names the files of each part, and the files, as JSONL, TSV, text or Parquet."""
    configs = []
    for part, splits in parts.items():
        files = {split: f"{place.format(part=part, split=split)}.{ending}" for split in splits}
        listed = [{"split": split, "path": path} for split, path in files.items()]
        configs.append({"config_name": part, "data_files": listed} | ({"sep": "\t"} if ending == "tsv" else {}))
        for split, rows in splits.items():
            write_rows(folder / files[split], rows)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


def write_rows(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    match file.suffix:
        case ".jsonl":
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case ".gz":
            file.write_bytes(gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()))
        case ".txt":
            file.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(file)
        case ".tsv":
            with file.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, list(rows[0]), delimiter="\t")
                writer.writeheader()
                writer.writerows(rows)


def write_hub(root: Path, codes: Sequence[str]) -> None:
    """All data sets that the tests ask, in these languages."""

    def okapi(rows: Callable[[str, str], Rows], *splits: str) -> dict[str, dict[str, Rows]]:
        return {code: {split: rows(code, split) for split in splits} for code in codes}

    write_dataset(root / "alexandrainst/m_arc", okapi(m_arc, "train", "validation", "test"), "jsonl")
    write_dataset(root / "alexandrainst/m_hellaswag", okapi(m_hellaswag, "val"), "jsonl")
    write_dataset(root / "alexandrainst/m_mmlu", okapi(m_mmlu, "train", "val", "test"), "jsonl")
    arc = {"ARC-Challenge": {split: ai2_arc("en", split) for split in ("train", "validation", "test")}}
    write_dataset(root / "allenai/ai2_arc", arc, "parquet")
    rowan = {"default": {split: hellaswag("en", split) for split in ("train", "validation")}}
    write_dataset(root / "Rowan/hellaswag", rowan, "parquet")
    write_dataset(root / "facebook/belebele", {FLORES[code]: {"test": belebele(code, "test")} for code in codes}, "jsonl")
    piqa = {FLORES[code].lower(): {"test": global_piqa(code, "test")} for code in codes}
    write_dataset(root / "mrlbenchmarks/global-piqa-parallel", piqa, "tsv")


def write_corpora(root: Path, codes: Sequence[str]) -> None:
    """The data sets of the options in conf/corpus, in English and these languages."""
    every = ("en", *codes)
    plus = {FLORES[code]: {split: flores_plus(code, split) for split in ("dev", "devtest")} for code in every}
    write_dataset(root / "openlanguagedata/flores_plus", plus, "jsonl", "{split}/{part}")
    write_dataset(root / "davidstap/NTREX", {FLORES[code]: {"test": ntrex(code, "test")} for code in every}, "txt", "data/{part}/newstest2019")
    opus = {"-".join(sorted(("en", code))): {split: opus_100(code, split) for split in ("train", "test")} for code in codes}
    write_dataset(root / "Helsinki-NLP/opus-100", opus, "parquet", "{part}/{split}-00000-of-00001")
    pairs = {f"{FLORES[code][:3]}-eng": {"test": tatoeba(code, "test")} for code in codes}
    write_dataset(root / "mteb/tatoeba-bitext-mining", pairs, "jsonl.gz", "{split}/{part}")
