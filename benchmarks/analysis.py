"""Ways to measure activations at every layer."""

from collections.abc import Callable

import torch

from benchmarks.setting import BATCH_TOKENS, Setting, load, random_saes, text
from lingact.activations.passes import measure
from lingact.data.tokens import TokenBatch
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries

ONE_LAYER_SHARE = 9
"""One layer a pass is measured on every ninth layer only, and counted nine times."""


def lingact(setting: Setting) -> Callable[[], float]:
    """All statistics of `measures=core`."""
    lm, corpus = load(setting), text(setting)
    count = len(lm.blocks)
    layers = None if setting.layers is None else tuple((place + 1) * count // setting.layers - 1 for place in range(setting.layers))
    saes = random_saes(lm, corpus, setting.width, layers)

    def run() -> float:
        found = measure(lm, {"measuring": saes}, corpus, batch_tokens=BATCH_TOKENS, identity={})
        return float(sum(stats.activation.sum() for stats in found.stats.values()))

    return run


def floor(setting: Setting) -> Callable[[], float]:
    """The same forward passes without logits, and the bare products of the encoders: no statistic at all."""
    lm, saes, given = _given(setting)
    return lambda: floor_pass(lm, saes, given)


@torch.no_grad()
def floor_pass(lm: LanguageModel, saes: Dictionaries, given: list[TokenBatch]) -> float:
    """What `floor` does, for any model and SAEs in memory."""
    for batch in given:
        residuals, _ = lm.residuals(batch, tuple(saes))
        keep = batch.keep.to(lm.device)
        for layer, dictionary in saes.items():
            residuals[layer][keep].float() @ dictionary.sae.W_enc
    return 0.0


def hidden_states(setting: Setting) -> Callable[[], float]:
    """What a script does: all hidden states, sae-lens's `encode` and `decode`, and the same sums."""
    lm, saes, given = _given(setting)
    return lambda: hidden_states_pass(lm, saes, given)


@torch.no_grad()
def hidden_states_pass(lm: LanguageModel, saes: Dictionaries, given: list[TokenBatch]) -> float:
    """What `hidden_states` does, for any model and SAEs in memory."""
    total = 0.0
    for own in given:
        batch = own.to(lm.device)
        output = lm.model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False, output_hidden_states=True, logits_to_keep=1)
        for layer, dictionary in saes.items():
            x = output.hidden_states[layer + 1][batch.keep].float()
            total += summed(dictionary.sae.encode(x), dictionary, x)
    return total


def summed(features: torch.Tensor, dictionary: object, x: torch.Tensor) -> float:
    """Activation, L0, l2, the ten largest, the profile, firing counts, norms and reconstruction error, as a script computes them."""
    sums = [
        features.sum(),
        (features > 0).sum(),
        features.norm(dim=-1).sum(),
        features.topk(10, dim=-1).values.sum(),
        features.sum(dim=0).sum(),
        (features > 0).sum(dim=0).sum(),
        x.norm(dim=-1).sum(),
        (x - dictionary.sae.decode(features)).square().sum(),  # pyrefly: ignore[missing-attribute]
    ]
    return float(torch.stack([value.double() for value in sums])[0])


def one_layer(setting: Setting) -> Callable[[], float]:
    """A pass for each layer and sentence, with logits."""
    lm, corpus = load(setting), text(setting)
    chosen = tuple(range(0, len(lm.blocks), ONE_LAYER_SHARE))
    saes = random_saes(lm, corpus, setting.width, chosen)
    windows = [window for texts in corpus.texts.values() for window in lm.tokens.windows(texts)]

    @torch.no_grad()
    def run() -> float:
        total = 0.0
        for layer, dictionary in saes.items():
            for window in windows:
                batch = lm.tokens.collate([window])
                output = lm.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
                x = output.hidden_states[layer + 1][batch.keep]
                total += summed(dictionary.sae.encode(x), dictionary, x)
        return total

    return run


def sae_lens(setting: Setting) -> Callable[[], float]:
    """sae-lens's own `run_with_cache_with_saes` over TransformerLens's bridge to the same model."""
    from sae_lens import SAETransformerBridge

    lm, saes, given = _given(setting)
    bridge = SAETransformerBridge.boot_transformers(
        "google/gemma-3-270m" if setting.model else "google/gemma-2-2b", hf_model=lm.model, tokenizer=lm.tokenizer, dtype=torch.float32, device="cpu"
    )

    @torch.no_grad()
    def run() -> float:
        total = 0.0
        for batch in given:
            given_saes = [dictionary.sae for dictionary in saes.values()]
            _, cache = bridge.run_with_cache_with_saes(
                batch.ids,
                attention_mask=batch.attention.long(),
                saes=given_saes,
                use_error_term=True,  # so that the residual stream stays as it is
                names_filter=lambda name: name.endswith(("hook_sae_acts_post", "hook_sae_input")),
            )
            for layer, dictionary in saes.items():
                name = f"blocks.{layer}.hook_out"
                total += summed(cache[f"{name}.hook_sae_acts_post"][batch.keep], dictionary, cache[f"{name}.hook_sae_input"][batch.keep])
        return total

    return run


def _given(setting: Setting) -> tuple[LanguageModel, Dictionaries, list[TokenBatch]]:
    lm = load(setting)
    return lm, random_saes(lm, text(setting), setting.width), batches(lm, setting)


def batches(lm: LanguageModel, setting: Setting) -> list[TokenBatch]:
    """As analyze.py makes them."""
    return [batch for texts in text(setting).texts.values() for batch in lm.tokens.batches(lm.tokens.windows(texts), BATCH_TOKENS)]


WAYS = {"lingact": lingact, "floor": floor, "hidden_states": hidden_states, "sae_lens": sae_lens, "one_layer": one_layer}
SCALED = {"one_layer": ONE_LAYER_SHARE}
