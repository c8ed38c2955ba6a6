"""Greedy continuations: what is continued, by whom, and how much of it is repeated."""

import copy
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import decoders
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import Tokens
from lingact.models.adapters import base_behaviour
from lingact.models.lm import LanguageModel
from lingact.training.continuations import NEW_TOKENS, PROMPTS, continuation_table, greedy, repetition, repetition_summary

EOS = 1
CODES = ("hi", "en")


@pytest.fixture
def tokenizer(tokenizer: Any) -> Any:
    """The same, able to put its bytes together again."""
    able = copy.deepcopy(tokenizer)
    able.backend_tokenizer.decoder = decoders.ByteLevel()
    return able


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("aaa", 0),  # a single trigram
        ("aaaa", 1),  # twice aaa, overlapping
        ("abcdef", 0),
        ("abcabcd", 6 / 7),
        ("abababx", 6 / 7),  # aba and bab, twice each
        ("abcxyabc", 6 / 8),
        ("ababcd", 0),  # a repeated pair is no repeated trigram
    ],
)
def test_repetition_by_hand(text: str, share: float) -> None:
    assert repetition([ord(letter) for letter in text]) == pytest.approx(share)


class Script(PreTrainedModel):
    """Says after each token what is written down for it, or the token itself once more. It keeps no keys and values."""

    def __init__(self, after: dict[int, int]) -> None:
        super().__init__(PretrainedConfig())
        self.after = after
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        following = torch.tensor([[self.after.get(token, token) for token in row] for row in input_ids.tolist()])
        return SimpleNamespace(logits=nn.functional.one_hot(following, 259).float())


def test_text_ends_at_a_special_token_at_enough_tokens_or_at_the_end_of_the_context(lm: LanguageModel) -> None:
    lm.model = Script({10: 11, 11: 12, 12: EOS})
    assert greedy(lm, [[10], [12], [9]]) == [[11, 12], [], [9] * NEW_TOKENS]
    lm.tokens = Tokens(lm.tokenizer, 8)
    assert greedy(lm, [[9] * 5, [9], [9] * 7]) == [[9, 9], [9] * 6, []]  # BOS and five are six of eight


def test_greedy_text_is_that_of_the_library_whatever_the_model_brings_along(lm: LanguageModel) -> None:
    model: Any = lm.model
    prompt = lm.tokenizer("We go to", add_special_tokens=False).input_ids
    ids = torch.tensor([[*lm.tokens.prefix, *prompt]])
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=EOS, pad_token_id=0)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :].tolist()
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=10.0, eos_token_id=EOS, pad_token_id=0)
    assert greedy(lm, [prompt]) == [[token for token in expected if token != EOS]]


def test_prompts_of_any_length_side_by_side_change_nothing(lm: LanguageModel) -> None:
    """Longer than the sliding window of 16 tokens, too, and up to the end of the context."""
    sentences = ("We go to", "B", "It rained all night long and all day", "The old man reads a book to the child that sits there, yes")
    prompts = [lm.tokenizer(sentence, add_special_tokens=False).input_ids for sentence in sentences]
    together = greedy(lm, prompts)
    assert together == [text for prompt in prompts for text in greedy(lm, [prompt])]
    for prompt, text in zip(prompts, together, strict=True):
        assert len(prompt) + 1 + len(text) <= lm.tokens.context
        ids = torch.tensor([[*lm.tokens.prefix, *prompt, *text]])
        likeliest = lm.model(input_ids=ids, use_cache=False).logits[0, len(prompt) : -1].argmax(dim=-1)
        assert likeliest.tolist() == text, "as if nothing were padded or kept"


@pytest.fixture
def adapted(lm: LanguageModel) -> LanguageModel:
    """The random model with an adapter that does something."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        lm.model = get_peft_model(lm.model, LoraConfig(r=2, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)).eval()
    return lm


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks transformers 5.23
def test_base_and_adapter_continue_the_same_halves_of_the_same_sentences(adapted: LanguageModel, corpus: ParallelCorpus) -> None:
    table = continuation_table(adapted, corpus, CODES)
    chosen = corpus.select(corpus.sample(PROMPTS).tolist())
    assert table[["language", "sentence_id"]].to_numpy().tolist() == [[code, name] for code in CODES for name in chosen.ids]
    sentences = [text for code in CODES for text in chosen.texts[code]]
    halves = zip(sentences, table["prompt"], table["original"], strict=True)
    assert all(prompt and original and sentence.startswith(prompt + original) for sentence, prompt, original in halves)
    for row in table.to_dict("records"):
        ids = adapted.tokenizer(row["prompt"], add_special_tokens=False).input_ids
        with base_behaviour(adapted.model):
            (base,) = greedy(adapted, [ids])
        assert row["repetition_base"] == repetition(base)
        assert row["repetition_adapter"] == repetition(greedy(adapted, [ids])[0])
    assert (table["base"] != table["adapter"]).any()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(table["base"] + table["adapter"])), "a table and a page can hold it"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_words_are_not_cut(adapted: LanguageModel) -> None:
    texts = ("internationalisation now", "a nationalisation", "Brotzeit")  # one token per byte: the middle lies within a word
    table = continuation_table(adapted, ParallelCorpus("three", ("a", "b", "c"), {"en": texts}), ("en",)).set_index("sentence_id")
    assert table["prompt"].to_dict() == {"a": "internationalisation", "b": "a ", "c": "Brot"}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_summary_is_the_adapters_mean(adapted: LanguageModel, corpus: ParallelCorpus) -> None:
    table = continuation_table(adapted, corpus, CODES)
    table["repetition_adapter"] = [0.0, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0, 0.2]
    assert repetition_summary(table) == pytest.approx({"repetition/hi": 0.5, "repetition/en": 0.05})
