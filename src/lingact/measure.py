"""One pass over aligned text: every layer, every set of SAEs, base and adapter side by side, into streaming statistics."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lingact.adapters import base_behaviour
from lingact.corpus import ParallelCorpus
from lingact.features import kept_residuals, next_token_nll, rescaled
from lingact.lm import LanguageModel
from lingact.losses import kl_per_token
from lingact.sae import Dictionaries
from lingact.stats import FeatureStats, add_batch
from lingact.tokens import TokenBatch

BASE, ADAPTER, NORM_MATCHED = "base", "adapter", "norm_matched"
"""What is measured: the base model, the adapted one, and the adapted one with each residual rescaled to the base's norm on that token."""

Key = tuple[str, str, str]
"""(meter, variant, language); a meter is a set of SAEs: measuring or heldout."""


@dataclass(frozen=True)
class Measurement:
    """Statistics by meter, variant and language."""

    stats: dict[Key, FeatureStats]

    def of(self, meter: str, variant: str) -> dict[str, FeatureStats]:
        """Language -> statistics."""
        return {code: s for (m, v, code), s in self.stats.items() if (m, v) == (meter, variant)}

    def save(self, folder: Path) -> None:
        """One safetensors file per meter, variant and language."""
        for key, stats in self.stats.items():
            stats.save(folder / f"{'-'.join(key)}.safetensors")


@torch.no_grad()
def measure(
    lm: LanguageModel,
    meters: dict[str, Dictionaries],
    corpus: ParallelCorpus,
    *,
    batch_tokens: int,
    identity: dict[str, str],
    with_adapter: bool = False,
    language_model: bool = False,
) -> Measurement:
    """Measure every language of the corpus.

    Args:
        lm: the model; with an adapter attached if `with_adapter`.
        meters: sets of SAEs by name; all have the same layers.
        batch_tokens: padded tokens per forward pass.
        identity: goes into the statistics' headers, with meter, variant and language added.
        with_adapter: measure base, adapter and norm-matched adapter instead of the base alone.
        language_model: also sum cross-entropies, and KL(base || adapter); needs the logits.
    """
    layers = tuple(next(iter(meters.values())))
    variants = (BASE, ADAPTER, NORM_MATCHED) if with_adapter else (BASE,)
    windows = {code: lm.tokens.windows(texts) for code, texts in corpus.texts.items()}
    found: dict[Key, FeatureStats] = {}
    total = sum(len(window.ids) for ws in windows.values() for window in ws)
    with tqdm(total=total, desc="measuring", unit="tok", unit_scale=True, leave=False) as bar:
        for code, language_windows in windows.items():
            bar.set_postfix_str(code)
            for batch in lm.tokens.batches(language_windows, batch_tokens):
                residuals, predictions = _forward(lm, batch, layers, with_adapter=with_adapter, language_model=language_model)
                sentence = batch.kept_sentence
                for meter, dictionaries in meters.items():
                    for variant in variants:
                        key = (meter, variant, code)
                        if key not in found:
                            header = identity | {"meter": meter, "variant": variant, "language": code}
                            d_model = residuals[BASE][layers[0]].shape[-1]
                            found[key] = FeatureStats.empty(header, corpus, code, dictionaries, d_model, language_model=variant in predictions)
                        stats = found[key]
                        stats.count_tokens(batch.sentence, sentence)
                        add_batch(stats, dictionaries, residuals[variant], sentence)
                        if variant in predictions:
                            stats.add_predictions(*predictions[variant])
                bar.update(int(batch.attention.sum()))
    return Measurement(found)


def _forward(lm: LanguageModel, batch: TokenBatch, layers: tuple[int, ...], *, with_adapter: bool, language_model: bool):  # noqa: ANN202 (two dictionaries, named in the last line)
    with base_behaviour(lm.model):
        base, base_logits = kept_residuals(lm, batch, layers, logits=language_model)
    residuals = {BASE: base}
    predictions: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    if base_logits is not None:
        nll, mask = next_token_nll(base_logits, batch)
        sentence = batch.sentence[:, None].expand(-1, mask.shape[1])[mask.cpu()]
        predictions[BASE] = (nll, torch.zeros_like(nll), sentence)
    if with_adapter:
        residuals[ADAPTER], logits = kept_residuals(lm, batch, layers, logits=language_model)
        residuals[NORM_MATCHED] = {layer: rescaled(x, base[layer]) for layer, x in residuals[ADAPTER].items()}
        if logits is not None and base_logits is not None:
            nll, mask = next_token_nll(logits, batch)
            kl = kl_per_token(base_logits[:, :-1][mask], logits[:, :-1][mask])
            predictions[ADAPTER] = (nll, kl, predictions[BASE][2])
    return residuals, predictions
