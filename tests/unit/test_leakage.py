"""What training text knows of benchmark items: shares of word sequences counted by hand."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingact.config.data import Splits
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.evaluation.contamination import contamination_table, content_words, known_share, same_source, training_corpus, training_text

OSLO = "The capital city of the country Norway is the town Oslo"  # 11 words, 8 sequences of 4
STOCKHOLM = "The capital city of the country Sweden is the town Stockholm"


def shares(item: str, *training: str, words: int = 4) -> float:
    return float(known_share([item], training, words=words)[0])


@pytest.mark.parametrize(
    ("training", "share"),
    [
        ([], 0),
        ([OSLO], 1),
        (["Everyone knows: " + OSLO + ", and nobody forgets it."], 1),
        ([STOCKHOLM], 3 / 8),  # a template: `the capital city of`, `capital city of the`, `city of the country`; none behind Norway
        ([STOCKHOLM, "Norway is the town Oslo"], 5 / 8),
        (["country Norway is the", "of the country Norway"], 2 / 8),
        (["The capital city", "of the country", "Norway is the", "town Oslo"], 0),
        (["The capital city of Norway is the town Oslo"], 3 / 8),  # `the capital city of`, `Norway is the town`, `is the town Oslo`
        (["Oslo town the is Norway country the of city capital The"], 0),
    ],
)
def test_the_share_of_known_sequences(training: list[str], share: float) -> None:
    assert shares(OSLO, *training) == pytest.approx(share)


def test_sequences_do_not_run_from_one_training_text_into_the_next() -> None:
    assert shares("one two three four five", "one two three", "four five", words=5) == 0
    assert shares("one two three four five", "one two three four five", words=5) == 1


def test_longer_sequences_know_less() -> None:
    assert [shares(OSLO, STOCKHOLM, words=words) for words in (3, 4, 6, 7)] == pytest.approx([5 / 9, 3 / 8, 1 / 6, 0])


def test_case_and_punctuation_are_no_difference() -> None:
    assert shares("the CAPITAL city, of (the) country", "The capital-city of the «country»!") == 1
    assert shares("die Straße ist lang", "DIE STRASSE IST LANG") == 1


@pytest.mark.parametrize(
    "form",
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: unicodedata.normalize("NFC", text),
        lambda text: text.replace("\u0921\u093c", "\u095c").replace("\u0922\u093c", "\u095d"),
        lambda text: text.replace("\u0d7b", "\u0d28\u0d4d\u200d").replace("\u0d7e", "\u0d33\u0d4d\u200d"),
        lambda text: text.replace("\u0931\u094d", "\u0930\u094d\u200d"),
        lambda text: text.replace("a", "a\u00ad").replace("\u094d", "\u094d\u200c"),
        lambda text: f"\ufeff{text}",
    ],
    ids=["NFD", "NFC", "composed nukta", "old chillu", "old eyelash ra", "ignorable characters", "byte-order mark"],
)
@pytest.mark.parametrize(
    "text",
    [
        "लड़का और लड़की रोज़ सुबह पढ़ने के लिए गाड़ी से शहर जाते हैं",
        "അവൻ അവരുടെ കുട്ടികൾ സ്കൂളിൽ നിന്ന് വരുമ്പോൾ പാട്ടുകൾ കേൾക്കുന്നു",
        "दुसऱ्या दिवशी सगळ्या शेतकऱ्यांनी नदीच्या किनाऱ्यावर मोठी सभा घेतली",
        "Mañana el señor Muñoz llevará a su niña pequeña al jardín más cercano",
    ],
    ids=["hi", "ml", "mr", "es"],
)
def test_a_text_in_another_unicode_form_is_known(form: Callable[[str], str], text: str) -> None:
    assert shares(form(text), text, words=8) == shares(text, form(text), words=8) == 1


def test_labels_are_no_content() -> None:
    item = "Question: The quick brown fox jumps over the lazy dog\nAnswer: Of course"
    assert content_words(item) == ("the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog")
    assert shares(item, "The quick brown fox sleeps") == pytest.approx(1 / 6)
    assert shares(item, "Question: What? Answer: Yes") == 0
    assert content_words("P: Il pleut à Paris。 Q: Où pleut-il donc?") == ("il", "pleut", "à", "paris", "où", "pleut", "il", "donc")


def test_what_has_nothing_but_labels_is_taken_whole() -> None:
    assert content_words("Answer: Blue") == ("answer", "blue")
    assert shares("Answer: Blue", "the answer blue is right. the answer blue") == 1
    assert shares("Answer: Blue", "The answer is blue") == 0


@pytest.mark.parametrize(("training", "share"), [("I like cold blue water", 1), ("the water is cold and blue", 0), ("cold blue", 0)])
def test_an_item_shorter_than_a_sequence_is_one_whole(training: str, share: float) -> None:
    assert shares("Cold, blue water", training, words=8) == share


def test_items_of_different_lengths_have_their_own_sequences() -> None:
    items = ["cold blue water", OSLO, "red sand and some stones"]
    assert known_share(items, ["cold blue water runs", STOCKHOLM], words=4).tolist() == pytest.approx([1, 3 / 8, 0])


def test_every_chinese_character_is_a_word() -> None:
    # 今天天气很好 has six words and three sequences of four; `今天天气` and `天天气很` are known.
    assert content_words("今天天气很好。") == tuple("今天天气很好")
    assert shares("今天天气很好。", "今天天气很冷") == pytest.approx(2 / 3)


def test_indic_words_stay_whole() -> None:
    assert content_words("आसमान नीला है। रोटी कहाँ है?") == ("आसमान", "नीला", "है", "रोटी", "कहाँ", "है")
    assert shares("आज आसमान बहुत नीला है।", "कल आसमान बहुत नीला है।") == pytest.approx(1 / 2)


def test_items_without_words_are_known_to_nobody() -> None:
    assert known_share(["", "?!", "one two three four"], ["?!", "one two three four"], words=4).tolist() == [0, 0, 1]
    assert known_share([], ["a text"], words=4).shape == (0,)


# --- the same source ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "corpus", "source"),
    [
        ("belebele", "openlanguagedata/flores_plus", "flores"),
        ("belebele", "openlanguagedata/flores_plus@main", "flores"),
        ("belebele", "Davlan/sib200", "flores"),
        ("belebele", "facebook/belebele", "flores"),
        ("belebele", "/data/mine.jsonl", None),
        ("arc", "openlanguagedata/flores_plus", None),
        ("hellaswag", "openlanguagedata/flores_plus", None),
        ("mine", "openlanguagedata/flores_plus", None),
    ],
)
def test_benchmarks_made_of_the_corpus_are_known_whatever_the_words_say(benchmark: str, corpus: str, source: str | None) -> None:
    assert same_source(benchmark, corpus) == source


def test_the_table_counts_items_with_any_enough_and_all_sequences_known() -> None:
    asked = {
        ("belebele", "en"): [OSLO, STOCKHOLM, "Bread is made of flour and water", "Cold blue water"],
        ("arc", "en"): ["Nothing of this kind is known here"],
        ("arc", "es"): ["Un perro es un animal"],
        ("arc", "hi"): ["कुत्ता एक जानवर है"],
    }
    training = {"en": [STOCKHOLM, "Norway is the town Oslo", "Very cold blue water"], "es": ["Nada que ver con los perros"]}
    table, found = contamination_table(asked, training, "openlanguagedata/flores_plus", words=4, share=0.625)
    assert list(table.columns) == ["benchmark", "language", "corpus", "words", "n", "any", "known", "whole", "same_source"]
    rows = table.dropna(subset="known")[["benchmark", "language", "n", "any", "known", "whole"]].to_numpy().tolist()
    # Oslo has 5 of 8 (3 of the template, 2 of the short text), Stockholm and the water all.
    assert rows == [["belebele", "en", 4, 3, 3, 2], ["arc", "en", 1, 0, 0, 0], ["arc", "es", 1, 0, 0, 0]]
    assert table["same_source"].where(table["same_source"].notna(), "").tolist() == ["flores", "", "", ""]
    assert set(found) == {("belebele", "en"), ("arc", "en"), ("arc", "es")}, "Hindi was not trained on"
    assert found["belebele", "en"].tolist() == pytest.approx([0.625, 1, 0, 1])
    assert set(table["corpus"]) == {"openlanguagedata/flores_plus"}
    assert set(table["words"]) == {4}
    stricter, _ = contamination_table(asked, training, "mine", words=4, share=0.63)
    assert stricter["known"].dropna().tolist() == [2, 0, 0]
    assert stricter["same_source"].isna().all()


def test_languages_that_were_not_trained_on_are_judged_by_names() -> None:
    """Translations of a leaked text are no less leaked."""
    table, found = contamination_table({("belebele", "hi"): ["कुत्ता"]}, {"en": ["A dog"]}, "gsarti/flores_101", words=4, share=0.5)
    assert (table["same_source"].tolist(), table["known"].isna().tolist(), found) == (["flores"], [True], {})


# --- what was trained on ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path: Path) -> dict[str, Any]:
    """The configuration of a training run on forty sentences."""
    rows = [{"unit": f"s{i}", "en": f"Sentence {i}.", "ml": f"വാക്യം {i}.", "hi": f"वाक्य {i}।"} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = {"train": 0.5, "dev": 0.2, "heldout": 0.3}
    corpus = {"kind": "files", "path": str(tmp_path / "text.jsonl"), "max_sentences": None, "splits": splits}
    return {"corpus": corpus, "languages": {"reference": "en", "high": [], "low": ["ml", "hi"]}, "lang": ["ml"], "seed": 3}


def test_training_text_is_that_of_the_train_split_in_target_and_reference(training: dict[str, Any]) -> None:
    text = training_text(training)
    assert isinstance(text, ParallelCorpus)
    assert list(text.texts) == ["en", "ml"]
    assert 10 < len(text.ids) < 30
    assert text.texts["ml"][0] == f"വാക്യം {text.ids[0][1:]}."
    whole = training_text(training | {"corpus": training["corpus"] | {"splits": {"train": 0.98, "dev": 0.01, "heldout": 0.01}}})
    assert set(text.ids) < set(whole.ids)
    assert len(training_text(training | {"corpus": training["corpus"] | {"max_sentences": 20}}).ids) < len(text.ids)


def test_text_that_is_not_there_any_more_is_told(training: dict[str, Any]) -> None:
    Path(training["corpus"]["path"]).unlink()
    with pytest.raises(UserError, match=r"corpus\.path: '.*text\.jsonl' does not exist"):
        training_text(training)


@pytest.mark.parametrize(
    "damage",
    [
        lambda training: training.pop("corpus"),
        lambda training: training.pop("languages"),
        lambda training: training.pop("lang"),
        lambda training: training["corpus"].pop("path"),
        lambda training: training.update(corpus="flores"),
        lambda training: training.update(languages=None),
        lambda training: training["corpus"].update(kind="tape"),
    ],
    ids=["no corpus", "no languages", "no targets", "no path", "a word for a corpus", "nothing for languages", "an unknown kind"],
)
def test_a_configuration_that_does_not_tell_its_text_is_refused(damage: Any, training: dict[str, Any]) -> None:
    damage(training)
    with pytest.raises(UserError, match="its configuration does not describe its training text: "):
        training_text(training)


def test_text_that_was_trained_on_apart_from_the_measured_one_is_that_corpus_without_what_both_have(training: dict[str, Any], tmp_path: Path) -> None:
    own = training_text(training)
    rows = [{"unit": f"t{i}", "en": f"Other {i}.", "ml": f"മറ്റൊന്ന് {i}."} for i in range(20)]
    rows += [{"unit": f"both-{i}", "en": f"sentence {i}.", "ml": f"? {i}"} for i in range(40)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    apart = training | {"train_corpus": training["corpus"] | {"path": str(tmp_path / "other.jsonl")}}
    text = training_text(apart)
    assert text.ids
    assert all(sentence.startswith("Other ") for sentence in text.texts["en"])
    assert set(text.ids) == {row["unit"] for row in rows[:20]} & set(text.split("train", Splits(train=0.5, dev=0.2, heldout=0.3)).ids)
    assert training_text(training | {"train_corpus": None}) == own
    assert training_corpus(apart)["path"].endswith("other.jsonl")
