"""Corpora of the hub: each preset on small data sets in the real layouts, from a folder and from an imitation of the hub; what is not to be had."""

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError

from lingact.config.data import HubCorpus, PairsCorpus, Splits
from lingact.data.corpus_hub import _listed_documents
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from tests.helpers import hub
from tests.helpers.hub_server import HubServer, serving
from tests.helpers.paths import CONF
from tests.helpers.processes import unused_port

SHARES = Splits(train=0.5, dev=0.2, heldout=0.3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def opus(limit: int | None = None) -> PairsCorpus:
    return PairsCorpus.model_validate(
        {
            "kind": "pairs",
            "dataset": "a/b",
            "revision": None,
            "licence": "x",
            "layout": "opus",
            "split": "train",
            "max_sentences": limit,
            "splits": SHARES,
        }
    )


def tatoeba() -> PairsCorpus:
    return opus().model_copy(update={"layout": "tatoeba"})


PAIRS = [
    ("Yes.", "അതെ."),
    (None, "ശൂന്യം."),
    ("yes.", "അതേ."),  # the reference's side came before
    ("No.", "ഇല്ല."),
    ("Nope.", "ഇല്ല."),  # the other side did
    ("Linux", "linux"),  # no translation
    ("Rain.", "മഴ."),
]


def test_pairs_keep_one_translation_of_each_sentence(here: Path) -> None:
    hub.write_dataset(here / "a/b", {"en-ml": {"train": [{"translation": {"en": en, "ml": ml}} for en, ml in PAIRS]}}, "parquet")
    corpus = load_corpus(opus(), ("en", "ml"))
    assert corpus.texts == {"en": ("Yes.", "No.", "Rain."), "ml": ("അതെ.", "ഇല്ല.", "മഴ.")}
    assert (corpus.name, corpus.left_out) == ("a/b/en-ml", 4)
    turned = load_corpus(opus(), ("ml", "en"))
    assert (list(turned.texts), turned.texts["en"]) == (["ml", "en"], corpus.texts["en"])
    few = load_corpus(opus(2), ("en", "ml"))
    assert (few.texts["en"], few.left_out) == (("Yes.", "No."), 2), "no more is read than is wanted"


def test_a_sentence_of_the_reference_is_in_the_same_split_whatever_it_is_paired_with(here: Path) -> None:
    many = {code: [{"translation": {"en": f"Sentence {i}.", code: f"{code} {i}"}} for i in range(60)] for code in ("ml", "hi")}
    hub.write_dataset(here / "a/b", {"en-ml": {"train": many["ml"]}, "en-hi": {"train": many["hi"][::-1]}}, "parquet")
    ml, hi = (load_corpus(opus(), ("en", code)) for code in ("ml", "hi"))
    assert ml.ids == hi.ids[::-1]
    assert set(ml.split("dev", SHARES).texts["en"]) == set(hi.split("dev", SHARES).texts["en"])


def test_the_columns_of_tatoeba(here: Path) -> None:
    rows = [{"sentence1": ml, "sentence2": en, "lang": "mal-eng"} for en, ml in PAIRS]
    hub.write_dataset(here / "a/b", {"mal-eng": {"train": rows}}, "jsonl")
    assert load_corpus(tatoeba(), ("en", "ml")).texts == {"en": ("Yes.", "No.", "Rain."), "ml": ("അതെ.", "ഇല്ല.", "മഴ.")}
    assert load_corpus(tatoeba(), ("ml", "en")).texts["en"] == ("Yes.", "No.", "Rain.")


def ntrex() -> HubCorpus:
    given = {"kind": "hub", "dataset": "a/b", "revision": None, "licence": "x", "subset": "ntrex", "split": "test", "id_column": None}
    return HubCorpus.model_validate(given | {"text_column": "text", "max_sentences": None, "splits": SHARES})


def text_files(folder: Path, **texts: str) -> None:
    """As NTREX lies on the hub: a text file for each language."""
    configs = [{"config_name": name, "data_files": [{"split": "test", "path": f"data/{name}/*"}]} for name in texts]
    for name, text in texts.items():
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "newstest.txt").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")


def test_lines_belong_together_where_there_are_no_ids(here: Path) -> None:
    text_files(here / "a/b", eng_Latn="One.\nTwo.\u2028Or three.\nOne.\n", est_Latn="Üks.\nKaks.\nÜks.\n")
    corpus = load_corpus(ntrex(), ("en", "et"))
    assert corpus.texts == {"en": ("One.", "Two.\u2028Or three."), "et": ("Üks.", "Kaks.")}
    assert (corpus.ids, corpus.left_out) == (("row-000001", "row-000002"), 1)


def flores(split: str = "dev", **other: Any) -> HubCorpus:
    return ntrex().model_copy(update={"subset": "flores", "split": split, "id_column": "id"} | other)


@pytest.mark.parametrize(
    ("config", "codes", "message"),
    [
        (flores(), ("en", "quy"), r"corpus 'a/b' (x) has nothing for quy: no configuration 'quy_Latn'. Leave quy out, or choose another corpus"),
        (flores("test"), ("en", "ml"), """corpus 'a/b' (x) cannot be read: Unknown split "test". Should be one of ['dev']."""),
        (flores(text_column="sentence"), ("en", "ml"), "corpus 'a/b' (x) has no column sentence in 'eng_Latn' (there: id, text); fix its section"),
        (flores(), ("en", "hi"), "corpus 'a/b' is ragged: row 2 lacks hi (1 in all); every sentence needs a text in every language"),
        (opus(), ("en", "zh_Hant"), "corpus 'a/b' tells scripts and varieties not apart, so it has nothing for zh_Hant; choose another corpus"),
        (tatoeba(), ("en", "ml"), "corpus 'a/b' (x) has nothing for ml: no configuration 'mal-eng'. Leave ml out, or choose another corpus"),
    ],
)
def test_what_a_data_set_does_not_have(here: Path, config: HubCorpus | PairsCorpus, codes: tuple[str, str], message: str) -> None:
    texts = {"eng_Latn": ["One.", "Two."], "mal_Mlym": ["ഒന്ന്.", "രണ്ട്."], "hin_Deva": ["एक।"]}
    rows = {name: {"dev": [{"id": i, "text": text} for i, text in enumerate(own)]} for name, own in texts.items()}
    hub.write_dataset(here / "a/b", rows, "jsonl")
    with pytest.raises(UserError) as caught:
        load_corpus(config, codes)
    assert str(caught.value) == message


def documents(**urls: list[Any]) -> dict[str, dict[str, hub.Rows]]:
    """A data set whose rows have an id, a text and an address."""
    return {name: {"dev": [{"id": i, "text": f"{name} {i}", "url": url} for i, url in enumerate(own)]} for name, own in urls.items()}


def test_documents_come_from_a_column(here: Path) -> None:
    rows = documents(eng_Latn=["w/oslo", "w/oslo", "w/rome"], mal_Mlym=["w/oslo", "w/oslo", "w/rome"])
    rows["mal_Mlym"]["dev"].reverse()
    hub.write_dataset(here / "a/b", rows, "jsonl")
    corpus = load_corpus(flores(document_column="url"), ("en", "ml"))
    assert (corpus.documents, corpus.ids) == (("w/oslo", "w/oslo", "w/rome"), ("0", "1", "2"))
    assert corpus.texts["ml"] == ("mal_Mlym 0", "mal_Mlym 1", "mal_Mlym 2")
    assert load_corpus(flores(document_column="url", max_sentences=1), ("en", "ml")).documents == ("w/oslo",)
    assert load_corpus(flores(), ("en", "ml")).documents is None


@pytest.mark.parametrize(
    ("urls", "changes", "message"),
    [
        (["x", "z"], {}, "corpus 'a/b', configuration 'mal_Mlym': sentence 1 is of the document 'z', and in en of 'y'; a sentence and its translations are"),
        (["x", None], {}, "corpus 'a/b', configuration 'mal_Mlym', row 2: url is missing, but other rows have it"),
        (["x", " "], {}, "corpus 'a/b', configuration 'mal_Mlym', row 2: url is blank"),
        ([None, None], {}, "corpus 'a/b', configuration 'mal_Mlym': the column 'url' holds nothing; do without documents: corpus.document_column=null"),
        (["x", "y"], {"document_column": "article"}, "corpus 'a/b' (x) has no column article in 'eng_Latn' (there: id, text, url)"),
        (["x", "y"], {"id_column": "url", "document_column": None, "text_column": "id"}, "corpus 'a/b', configuration 'eng_Latn', row 1: id is the whole nu"),
        (["x", "x"], {"id_column": "url", "document_column": None}, "corpus 'a/b', configuration 'mal_Mlym' has sentence ids more than once: x; fix corpus.id"),
        (["x", "y"], {"document_column": None, "documents": "ntrex_128"}, "corpus 'a/b', configuration 'eng_Latn' has 2 sentences, and the list of documents"),
    ],
)  # fmt: skip
def test_documents_and_ids_that_do_not_fit(here: Path, urls: list[Any], changes: dict[str, Any], message: str) -> None:
    hub.write_dataset(here / "a/b", documents(eng_Latn=["x", "y"], mal_Mlym=urls), "parquet")
    with pytest.raises(UserError) as caught:
        load_corpus(flores(**({"document_column": "url"} | changes)), ("en", "ml"))
    assert str(caught.value).startswith(message)


def test_pairs_with_a_separator_inside_are_left_out(here: Path) -> None:
    rows = [{"translation": {"en": en, "ml": ml}} for en, ml in [("Yes.\tNo.", "അതെ."), ("Rain.", "മഴ.\nമഞ്ഞ്."), ("Snow.", "മഞ്ഞ്.")]]
    hub.write_dataset(here / "a/b", {"en-ml": {"train": rows}}, "parquet")
    corpus = load_corpus(opus(), ("en", "ml"))
    assert (corpus.texts["en"], corpus.left_out, corpus.documents) == (("Snow.",), 2, None)


def test_the_list_of_documents_of_ntrex() -> None:
    """Its facts: 123 news items in a row, 1997 sentences, and the first ones as the authors list them."""
    listed = _listed_documents("ntrex_128")
    assert len(listed) == 1997
    assert len(set(listed)) == len([name for name, _ in itertools.groupby(listed)]) == 123
    assert (listed[0], listed[15], listed[16], listed[22]) == ("bbc.381790", "bbc.381790", "rt.com.91337", "nytimes.184853")
    with pytest.raises(ValidationError, match="documents come either from the column 'url' or from the list 'ntrex_128'; set one to null"):
        HubCorpus.model_validate(ntrex().model_dump() | {"document_column": "url", "documents": "ntrex_128"})


# --- the presets, through an imitation of the hub ----------------------------------------------------------------------------------------------------

PRESETS = ("flores_plus", "ntrex", "opus_100", "tatoeba")
LOAD = """
import json, sys, time
from pathlib import Path
import yaml
from pydantic import TypeAdapter
from lingact.config.data import CorpusConfig
from lingact.data.sources import load_corpus
from lingact.errors import UserError
import datasets, huggingface_hub
slept, sleep = [], time.sleep
time.sleep = lambda seconds: (slept.append(seconds), sleep(seconds))
for path in sys.argv[1:]:
    config = TypeAdapter(CorpusConfig).validate_python(yaml.safe_load(Path(path).read_text()))
    slept.clear()
    try:
        corpus = load_corpus(config, ("en", "ml"))
        found = corpus.identity | {"texts": corpus.texts}
    except UserError as error:
        found = {"problem": str(error)}
    print(json.dumps(found | {"slept": sum(slept)}))
"""
Process = Callable[..., subprocess.CompletedProcess[str]]


def presets(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return dict(zip(PRESETS, map(json.loads, done.stdout.splitlines()), strict=True))


def load(process: Process, address: str, **more: str) -> dict[str, dict[str, Any]]:
    return presets(process(address, "-c", LOAD, *(str(CONF / "corpus" / f"{name}.yaml") for name in PRESETS), **more))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    hub.write_corpora(tmp_path / "hub", ("ml",))
    with serving(tmp_path / "hub") as server:
        yield server


def test_every_preset_loads_and_loads_again_when_the_hub_is_gone(server: HubServer, process: Process) -> None:
    first = load(process, server.url)
    keys = ("name", "sentences", "left_out", "documents")
    told = {name: {key: found[key] for key in keys if key in found} for name, found in first.items()}
    assert told == {
        "flores_plus": {"name": "openlanguagedata/flores_plus", "sentences": 12, "left_out": 0, "documents": 4},
        "ntrex": {"name": "davidstap/NTREX", "sentences": 1996, "left_out": 1, "documents": 123},
        "opus_100": {"name": "Helsinki-NLP/opus-100/en-ml", "sentences": 9, "left_out": 3},
        "tatoeba": {"name": "mteb/tatoeba-bitext-mining/mal-eng", "sentences": 9, "left_out": 3},
    }
    assert first["flores_plus"]["texts"]["ml"] == [row["text"] for row in hub.flores_plus("ml", "dev")]
    assert first["ntrex"]["texts"]["en"] == [row["text"] for row in hub.ntrex("en", "test")][:1996]
    kept = [row["translation"] for place, row in enumerate(hub.opus_100("ml", "train")) if place not in (4, 7, 9)]
    assert first["opus_100"]["texts"] == first["tatoeba"]["texts"] == {code: [row[code] for row in kept] for code in ("en", "ml")}
    pinned = yaml.safe_load((CONF / "corpus/ntrex.yaml").read_text())["revision"]
    assert any(pinned in asked for asked in server.asked)

    again = load(process, f"http://127.0.0.1:{unused_port()}")
    assert {name: found["sha256"] for name, found in again.items()} == {name: found["sha256"] for name, found in first.items()}
    assert max(found["slept"] for found in again.values()) < 1, "no retries"


def test_what_the_hub_refuses_names_licence_and_page(server: HubServer, process: Process) -> None:
    server.refuses = {
        "openlanguagedata/flores_plus": "gated",
        "davidstap/NTREX": "unknown",
        "Helsinki-NLP/opus-100": "not asked for",
        "mteb/tatoeba-bitext-mining": "unknown or private",
    }
    terms = "it is only available to those who accept its terms. Accept them on {page} and run `hf auth login`"
    nobody = (
        "it does not exist on the hub, or you have no access. Look at {page}; run `hf auth login` if you need to, or use corpus=files corpus.path=..."
    )
    of = {
        "flores_plus": ("openlanguagedata/flores_plus", "CC BY-SA 4.0, gated", terms),
        "ntrex": ("davidstap/NTREX", "CC BY-SA 4.0", nobody),
        "opus_100": ("Helsinki-NLP/opus-100", "that of each of its sources, not stated", terms),
        "tatoeba": ("mteb/tatoeba-bitext-mining", "CC BY 2.0 FR", nobody),
    }
    found = load(process, server.url)
    assert {name: found[name].get("problem") for name in PRESETS} == {
        name: f"corpus '{dataset}' ({licence}) cannot be loaded: {why.format(page=f'{server.url}/datasets/{dataset}')}"
        for name, (dataset, licence, why) in of.items()
    }


def test_no_hub_and_nothing_downloaded(process: Process) -> None:
    address = f"http://127.0.0.1:{unused_port()}"
    for name, found in load(process, address).items():
        licence = yaml.safe_load((CONF / "corpus" / f"{name}.yaml").read_text())["licence"]
        assert f"({licence}) cannot be loaded: cannot reach {address}, and it was not downloaded before. Connect once" in found["problem"]
        assert found["slept"] < 1, "no retries"


STREAM = """
import json, sys, yaml
from lingact.config.saes import HubText
from lingact.errors import UserError
from lingact.saes.text import read_running_text
try:
    given = yaml.safe_load(open(sys.argv[1])) | {"languages": ["en", "ml"], "characters": 300} | json.loads(sys.argv[2])
    found = read_running_text(HubText.model_validate(given))
    print(json.dumps({code: [text for document in own for text in document.texts] for code, own in found.training.items()}))
except UserError as error:
    print(json.dumps(str(error)))
"""


def streamed(process: Process, address: str, **changes: Any) -> Any:
    """Texts by language, or what is told."""
    done = process(address, "-c", STREAM, str(CONF / "text" / "hub.yaml"), json.dumps(changes))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ARTICLES = {code: [{"id": str(number), "text": f"{code} {number:03} article"} for number in range(300)] for code in ("en", "ml")}


def only_as_much_as_is_wanted(found: dict[str, list[str]]) -> None:
    assert set(found) == {"en", "ml"}
    for code, texts in found.items():
        assert set(texts) <= {row["text"] for row in ARTICLES[code][:22]}, "no more than 300 characters"
        assert len(texts) >= 10, "the others are held out"


def test_running_text_is_streamed(tmp_path: Path, process: Process) -> None:
    parts = {f"20231101.{code}": {"train": own} for code, own in ARTICLES.items()}
    hub.write_dataset(tmp_path / "hub" / "wikimedia/wikipedia", parts, "parquet")
    with serving(tmp_path / "hub") as server:
        only_as_much_as_is_wanted(streamed(process, server.url))
        page = f"{server.url}/datasets/wikimedia/wikipedia"
        server.refuses = {"wikimedia/wikipedia": "gated"}
        begin = "text 'wikimedia/wikipedia' (CC BY-SA 3.0 and GFDL) cannot be loaded:"
        assert (
            streamed(process, server.url)
            == f"{begin} it is only available to those who accept its terms. Accept them on {page} and run `hf auth login`"
        )
        server.refuses = {"wikimedia/wikipedia": "unknown"}
        assert streamed(process, server.url).startswith(f"{begin} it does not exist on the hub, or you have no access. Look at {page}")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_running_text_comes_from_files_of_a_language(kind: str, tmp_path: Path, process: Process) -> None:
    folder = tmp_path / "hub" / "a/b" / "verified"
    for code, name in (("en", "eng"), ("ml", "mal")):
        (folder / name).mkdir(parents=True)
        frame = pd.DataFrame(ARTICLES[code])
        path = folder / name / f"part-0.{kind}"
        frame.to_parquet(path) if kind == "parquet" else frame.to_json(path, orient="records", lines=True)
    given = {"dataset": "a/b", "subset": None, "files": f"verified/{{iso3}}/*.{kind}"}
    with serving(tmp_path / "hub") as server:
        only_as_much_as_is_wanted(streamed(process, server.url, **given))
        told = streamed(process, server.url, **given | {"languages": ["en", "hi"]})
        assert told == (
            f"text 'a/b' (CC BY-SA 3.0 and GFDL) has nothing for hi: no file 'verified/hin/*.{kind}'. Leave hi out, or choose another text"
        )
        told = streamed(process, server.url, **given | {"text": "body"})
        assert told == f"text 'a/b' (CC BY-SA 3.0 and GFDL) has no column body in 'verified/eng/*.{kind}' (there: id, text); fix its section"
