"""Strongest contexts against a search one sentence at a time, their text, and rates on random tokens."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import decoders

from lingact.activations.contexts import (
    AROUND,
    PER_LATENT,
    Context,
    _as_text,
    _random_windows,
    _Strongest,
    load_contexts,
    neuronpedia_url,
    random_token_rates,
    save_contexts,
    strongest_contexts,
)
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch, Tokens
from lingact.errors import UserError
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime import resumable_passes

WANTED = {2: [5, 40, 11], 0: [7]}
HEADER = {"model": "tiny"}
TOY_MODEL = Path(__file__).parents[2] / "src/lingact/assets/microworld/model"


@pytest.fixture
def readable(lm: LanguageModel) -> LanguageModel:
    """With a tokenizer that puts bytes together to characters again."""
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    lm.tokens = Tokens(lm.tokenizer, lm.tokens.context)
    return lm


@pytest.fixture
def narrow(readable: LanguageModel) -> LanguageModel:
    """A context so short that some sentences take several windows."""
    readable.tokens = Tokens(readable.tokenizer, 24)
    return readable


@torch.no_grad()
def one_at_a_time(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, layer: int, latent: int
) -> list[tuple[float, str, str, int]]:
    """(activation, language, sentence id, token) of the strongest token of every sentence, strongest first."""
    found = []
    for code, texts in corpus.texts.items():
        for place, text in enumerate(texts):
            best = (0.0, -1)
            for window in lm.tokens.windows([text]):
                residual = lm.residuals(lm.tokens.collate([window]), (layer,))[0][layer][0, 1:]
                values = dictionaries[layer].encode(residual)[:, latent]
                best = max(best, (values.max().item(), window.ids[1 + int(values.argmax())]), key=lambda entry: entry[0])
            if best[0] > 0:
                found.append((best[0], code, corpus.ids[place], best[1]))
    return sorted(found, key=lambda entry: -entry[0])


def shown(lm: LanguageModel, token: int) -> str:
    """A character as it is, a byte that is only a part of one by its name."""
    name = str(lm.tokenizer.convert_ids_to_tokens(token))
    return str(lm.tokenizer.decode([token])) if name.isascii() or name == "Ġ" else name


def test_the_strongest_tokens_are_those_of_a_search_by_sentence(narrow: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    found = strongest_contexts(narrow, dictionaries, corpus, WANTED, batch_tokens=100, header=HEADER)
    assert [(c.layer, c.latent) for c in found] == [
        (layer, latent) for layer, chosen in WANTED.items() for latent in chosen for _ in range(PER_LATENT)
    ]
    assert len({c.language for c in found}) > 1
    for layer, chosen in WANTED.items():
        for latent in chosen:
            own = [c for c in found if (c.layer, c.latent) == (layer, latent)]
            expected = one_at_a_time(narrow, dictionaries, corpus, layer, latent)[:PER_LATENT]
            assert [c.activation for c in own] == pytest.approx([value for value, *_ in expected], rel=1e-4)
            assert [(c.language, c.sentence_id) for c in own] == [(code, place) for _, code, place, _ in expected]
            assert [c.token for c in own] == [shown(narrow, token) for *_, token in expected]


def test_batches_do_not_matter(narrow: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    small, large = (strongest_contexts(narrow, dictionaries, corpus, WANTED, batch_tokens=size, header=HEADER) for size in (30, 500))
    assert [(c.language, c.sentence_id, c.before, c.token, c.after) for c in small] == [
        (c.language, c.sentence_id, c.before, c.token, c.after) for c in large
    ]


def test_the_text_around_is_that_of_the_sentence(readable: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    english = corpus.speaking(("en",))
    texts = dict(zip(english.ids, english.texts["en"], strict=True))
    found = strongest_contexts(readable, dictionaries, english, WANTED, batch_tokens=200, header=HEADER)
    for context in found:
        assert len(context.token) == 1
        assert len(context.before) <= AROUND
        assert len(context.after) <= AROUND
        assert context.before + context.token + context.after in texts[context.sentence_id]
    assert any(len(c.before) == AROUND for c in found)


def test_of_equally_strong_sentences_the_earlier_ones_are_kept(lm: LanguageModel, dictionaries: Dictionaries) -> None:
    same = ParallelCorpus("same", tuple(f"s{i}" for i in range(8)), dict.fromkeys(("es", "en"), ("Bread, of course.",) * 8))
    [first, *rest] = strongest_contexts(lm, dictionaries, same, {1: [3]}, batch_tokens=40, header=HEADER)
    assert first.activation > 0
    assert [(c.language, c.sentence_id) for c in (first, *rest)] == [("es", f"s{i}") for i in range(PER_LATENT)]


def test_equals_from_a_later_batch_stand_by_sentence() -> None:
    strongest = _Strongest.empty(1)
    for sentence in (6, 2, 4, 9, 0, 8):
        batch = TokenBatch(
            torch.tensor([[2, 10 + sentence]]),
            torch.tensor([[True, True]]),
            torch.tensor([[False, True]]),
            torch.tensor([sentence]),
            torch.tensor([True]),
        )
        strongest.add(np.array([[1.5]], np.float32), batch)
    assert strongest.sentence.tolist() == [[0, 2, 4, 6, 8]]
    assert strongest.ids[0, :, AROUND].tolist() == [10, 12, 14, 16, 18]


def test_a_latent_that_never_fires_has_no_context(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> None:
    dictionaries[1].sae.threshold.data[3] = torch.inf
    assert strongest_contexts(lm, dictionaries, corpus, {1: [3]}, batch_tokens=100, header=HEADER) == []
    assert strongest_contexts(lm, dictionaries, corpus, {}, batch_tokens=100, header=HEADER) == []


def interrupted_after(lm: LanguageModel, calls: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the model answer so many times and then stop the process; returns the count so far."""
    count, residuals = [0], LanguageModel.residuals

    def answer(self: LanguageModel, *arguments: Any, **options: Any) -> Any:
        if count[0] == calls:
            raise KeyboardInterrupt
        count[0] += 1
        return residuals(self, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "residuals", answer)
    return count


def test_an_interrupted_search_goes_on(
    lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(folder: Path | None) -> list[Context]:
        return strongest_contexts(lm, dictionaries, corpus, WANTED, batch_tokens=100, header=HEADER, folder=folder)

    whole = search(None)
    monkeypatch.setattr(resumable_passes, "SAVE_EVERY", -1.0)
    with monkeypatch.context() as patch:
        interrupted_after(lm, 8, patch)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path)
    with monkeypatch.context() as patch:
        count = interrupted_after(lm, 1000, patch)
        assert search(tmp_path) == whole
        rest = count[0]
        assert search(tmp_path) == whole
        assert count[0] == rest, "a finished search reads nothing again"
    steps = sum(len(list(lm.tokens.batches(lm.tokens.windows(texts), 100))) for texts in corpus.texts.values())
    assert steps - 8 <= rest <= steps - 7
    with pytest.raises(UserError, match="latents"):
        strongest_contexts(lm, dictionaries, corpus, {2: [5, 40, 12], 0: [7]}, batch_tokens=100, header=HEADER, folder=tmp_path)


def stretch(tokens: Tokens, text: str, position: int) -> np.ndarray:
    ids = tokens.tokenizer(text, add_special_tokens=False).input_ids
    padded = [-1] * AROUND + ids + [-1] * AROUND
    return np.array(padded[position : position + 2 * AROUND + 1])


@pytest.fixture(scope="module")
def metaspace() -> Tokens:
    """A vocabulary in the manner of SentencePiece: spaces lead words, unknown characters fall back to bytes."""
    from transformers import AutoTokenizer

    return Tokens(AutoTokenizer.from_pretrained(TOY_MODEL), 64)


def test_a_token_keeps_its_leading_space(metaspace: Tokens) -> None:
    text = "The cat sees a dog."
    count = len(metaspace.tokenizer(text, add_special_tokens=False).input_ids)
    cut = [_as_text(metaspace, stretch(metaspace, text, position)) for position in range(count)]
    assert {"".join(parts).strip() for parts in cut} == {text}
    assert "".join(token for _, token, _ in cut).strip() == text
    assert any(token.startswith(" ") for _, token, _ in cut[1:])


def test_a_part_of_a_character_is_named(metaspace: Tokens) -> None:
    text = "a \N{SNOWMAN} b"
    shards = metaspace.tokenizer.convert_ids_to_tokens(metaspace.tokenizer(text, add_special_tokens=False).input_ids)
    place = shards.index("<0x98>")  # the middle byte of e2 98 83
    before, token, after = _as_text(metaspace, stretch(metaspace, text, place))
    assert token == "<0x98>"
    assert before.strip().startswith("a")
    assert after.endswith("b")
    assert [_as_text(metaspace, stretch(metaspace, text, place + step))[1] for step in (-1, 1)] == ["<0xE2>", "<0x83>"]
    first = stretch(metaspace, text, place - 1)
    first[AROUND + 1 :] = -1  # the window ends within the character
    assert _as_text(metaspace, first)[1] == "<0xE2>"
    # Behind the whole character the text is whole again.
    before, token, _ = _as_text(metaspace, stretch(metaspace, text, place + 2))
    assert before.strip() == "a \N{SNOWMAN}"
    assert "<" not in token


def test_characters_that_the_stretch_cuts_are_left_out(readable: LanguageModel) -> None:
    text = "हाँ x हाँ"  # three bytes a character
    ids = stretch(readable.tokens, text, 10)
    ids[: AROUND - 8], ids[AROUND + 9 :] = -1, -1  # eight tokens on either side: a space, two characters, one byte
    assert _as_text(readable.tokens, ids) == ("ाँ ", "x", " हा")


def test_contexts_come_back_as_they_were_saved(tmp_path: Path) -> None:
    contexts = [Context(2, 5, "hi", "s3", 1.25, "रात ", "भर", " बारिश"), Context(2, 5, "en", "s0", 1.0, "", "A", " dog.")]
    save_contexts(tmp_path / "contexts.json", contexts)
    assert load_contexts(tmp_path / "contexts.json") == contexts
    with pytest.raises(UserError, match="does not exist"):
        load_contexts(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text('[{"layer": 2')
    with pytest.raises(UserError, match="cannot be read as contexts"):
        load_contexts(tmp_path / "cut.json")


def test_the_page_of_a_latent(make_sae: Callable[..., Any]) -> None:
    dictionary = Dictionary(make_sae(20), 20)
    assert neuronpedia_url(dictionary, 3) is None
    dictionary.sae.cfg.metadata.neuronpedia_id = "gemma-2-2b/20-gemmascope-res-16k"
    assert neuronpedia_url(dictionary, 3) == "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/3"


def test_random_windows_hold_ordinary_tokens_behind_bos(lm: LanguageModel) -> None:
    windows = _random_windows(lm.tokens, 1000, 0)
    assert {len(window.ids) for window in windows} == {33, 1 + 1000 % 32}
    assert {window.ids[0] for window in windows} == {2}
    drawn = np.array([token for window in windows for token in window.ids[1:]])
    assert len(drawn) == 1000
    assert drawn.min() == 3
    assert drawn.max() == 258
    assert abs(drawn.mean() - 130.5) < 4 * 74 / 1000**0.5


@torch.no_grad()
def test_random_rates_are_those_of_one_window_at_a_time(lm: LanguageModel, dictionaries: Dictionaries) -> None:
    sae_sets = {"measuring": dictionaries, "heldout": {layer: Dictionary(dictionaries[0].sae, layer) for layer in dictionaries}}
    found = random_token_rates(lm, sae_sets, tokens=200, seed=7, batch_tokens=100, header=HEADER)
    for sae_set, layer in (("measuring", 2), ("heldout", 1)):
        counts = torch.zeros(48)
        for window in _random_windows(lm.tokens, 200, 7):
            residual = lm.residuals(lm.tokens.collate([window]), (layer,))[0][layer][0, 1:]
            counts += (sae_sets[sae_set][layer].encode(residual) > 0).sum(dim=0)
        np.testing.assert_allclose(found[sae_set][layer], counts / 200, atol=1.01 / 200)  # a flip at the threshold
        assert 0 < found[sae_set][layer].mean() < 1


def test_random_rates_are_computed_once(lm: LanguageModel, dictionaries: Dictionaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(seed: int) -> dict[str, dict[int, np.ndarray]]:
        return random_token_rates(
            lm, {"measuring": dictionaries}, tokens=100, seed=seed, batch_tokens=100, header=HEADER, path=tmp_path / "random.safetensors"
        )

    first = rates(1)
    interrupted_after(lm, 0, monkeypatch)
    for layer, again in rates(1)["measuring"].items():
        np.testing.assert_array_equal(again, first["measuring"][layer])
    with pytest.raises(UserError, match="seed: 1 / 2"):
        rates(2)
