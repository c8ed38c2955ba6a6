"""Log-likelihoods of options against lm-eval's own, in every architecture."""

import random
from typing import Any

import pytest
import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    OpenAIGPTConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lingact.config.training import LoraAdapter
from lingact.evaluation import option_scores as module
from lingact.evaluation.loglikelihoods import harness_of
from lingact.evaluation.option_scores import PromptOptions
from lingact.models import next_tokens
from lingact.models.adapters import attach_adapter, base_behaviour
from lingact.models.lm import LanguageModel, find_blocks

SHAPE = {
    "vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip
CAPPED = SHAPE | {"sliding_window": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
ARCHITECTURES: dict[str, Any] = {
    "bloom": BloomConfig(vocab_size=259, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.3),
    "gemma2": Gemma2Config(**CAPPED),
    "gemma3": Gemma3TextConfig(**CAPPED, layer_types=["sliding_attention", "full_attention"]),
    "gemma3 with vision": Gemma3Config(text_config=SHAPE, vision_config=SHAPE | {"image_size": 28, "patch_size": 14}),
    "gpt2": GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=1, initializer_range=0.5),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "llama": LlamaConfig(**SHAPE),
    "llama4": Llama4TextConfig(**SHAPE, num_local_experts=2, intermediate_size_mlp=24),
    "mamba": MambaConfig(vocab_size=259, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0, bos_token_id=2, eos_token_id=1),
    "openai_gpt": OpenAIGPTConfig(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5),  # no keys and values
    "qwen3": Qwen3Config(**SHAPE),
}


def made(config: Any, attention: str = "eager") -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def questions() -> list[PromptOptions]:
    """Of lengths around the sliding window; with options of one token and of several, some of them twice in different questions."""
    draw = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 259) for _ in range(count))

    letters = tuple((token,) for token in (70, 71, 72, 73))
    mixed = [PromptOptions(ids(prompt), (ids(1), ids(4), ids(2))) for prompt in (1, 5, 8, 9, 30, 41)]
    return [*mixed, *(PromptOptions(ids(prompt), letters) for prompt in (7, 20)), PromptOptions(ids(3), (ids(6), ids(6)))]


def scores(model: Any, asked: list[PromptOptions], pad: int = 0) -> list[list[tuple[float, bool]]]:
    """All read side by side."""
    found = list(module.option_scores(model, [asked], pad=pad))
    assert [each for each, _ in found] == asked
    return [own for _, own in found]


def by_lm_eval(model: PreTrainedModel, lm: LanguageModel, asked: list[PromptOptions]) -> list[list[tuple[float, bool]]]:
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=model, tokenizer=lm.tokenizer, batch_size=3, max_length=64)
    requests = [(("", ""), list(each.prompt), list(option)) for each in asked for option in each.options]
    found = iter(plain._loglikelihood_tokens(requests, disable_tqdm=True))
    return [[next(found) for _ in each.options] for each in asked]


def same(found: list[list[tuple[float, bool]]], expected: list[list[tuple[float, bool]]], asked: list[PromptOptions]) -> None:
    tokens = [len(option) for each in asked for option in each.options]
    ours, theirs = ([score for own in several for score in own] for several in (found, expected))
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    for (one, _), (other, _), count in zip(ours, theirs, tokens, strict=True):
        assert abs(one - other) < 1e-4 * count
    assert len({round(one, 3) for one, _ in ours}) > len(ours) // 2, "they are not all alike"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_lm_eval(name: str, lm: LanguageModel) -> None:
    model = made(ARCHITECTURES[name])
    asked = questions()
    same(scores(model, asked), by_lm_eval(model, lm, asked), asked)


def test_scores_are_those_of_lm_eval_with_fused_attention(lm: LanguageModel) -> None:
    model, asked = made(ARCHITECTURES["llama"], "sdpa"), questions()
    same(scores(model, asked), by_lm_eval(model, lm, asked), asked)


def test_the_likeliest_continuation_is_recognised(lm: LanguageModel) -> None:
    (prompt,) = [each.prompt for each in questions()][-1:]
    with torch.no_grad():
        ids = list(prompt)
        for _ in range(3):
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    greedy = tuple(ids[len(prompt) :])
    others = (greedy[:1], (*greedy[:2], (greedy[2] + 1) % 259), ((greedy[0] + 1) % 259,))
    (own,) = scores(lm.model, [PromptOptions(prompt, (greedy, *others))])
    assert [found for _, found in own] == [True, True, False, False]


def test_neither_neighbours_nor_chunks_change_a_score(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = scores(lm.model, questions())
    alone = [scores(lm.model, [each])[0] for each in questions()]
    same(alone, together, questions())
    monkeypatch.setattr(next_tokens, "LOGITS_AT_ONCE", 2 * 259)
    same(scores(lm.model, questions(), pad=5), together, questions())


def test_an_adapter_counts_and_can_be_switched_off(lm: LanguageModel) -> None:
    asked = questions()
    before = scores(lm.model, asked)
    settings = LoraAdapter(
        kind="lora", r=2, alpha=8.0, dropout=0.0, use_rslora=False, use_dora=False, init="gaussian", targets=("q_proj", "down_proj"), layers="all"
    )
    blocks = find_blocks(lm.model, len(lm.blocks))
    wrapped = attach_adapter(lm.model, blocks, settings, seed=0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    assert scores(wrapped, asked) != before
    with base_behaviour(wrapped):
        assert scores(wrapped, asked) == before


def test_each_prompt_is_read_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    handle = lm.blocks[0].register_forward_hook(lambda _m, inputs, _o: read.append(inputs[0].shape[0] * inputs[0].shape[1]))
    rows: list[int] = []
    real = module.NextTokens.each
    monkeypatch.setattr(module.NextTokens, "each", lambda self, of: rows.append(len(self.target)) or real(self, of))
    scores(lm.model, [PromptOptions((2, *range(60, 90)), ((70, 71, 72), (73,), (74, 75))), PromptOptions((2, *range(60, 80)), ((70,),))], pad=0)
    handle.remove()
    assert read == [2 * 31, 2 * 2], "two prompts side by side; then the tokens but the last of the two options of several"
    assert rows == [2 + 2 + 1], "one position for each prompt, and one for each further token"


def test_prompts_that_are_too_long_lose_their_beginning(lm: LanguageModel) -> None:
    from lm_eval.models.huggingface import HFLM

    requests = [(("", ""), list(range(3, 90)), [70, 71, 72]), (("", ""), list(range(3, 90)), [70]), (("", ""), list(range(3, 66)), [70])]
    plain = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, max_length=64)
    harness = harness_of(lm, lm.model, 8)
    with tqdm(disable=True) as harness.bar:
        found = harness._loglikelihood_tokens(requests)
    for (one, _), (other, _) in zip(found, plain._loglikelihood_tokens(requests, disable_tqdm=True), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert harness.truncated == 2
