"""What the model predicts when its residual stream is edited: spliced reconstructions, ablated, scaled and steered features.

An edit touches kept tokens only: BOS, padding and other special tokens keep their residual, since SAEs are not trained on them. Whatever
is done, the cross-entropy is that of the same next tokens, summed per sentence, so that every comparison is paired.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lingact.activations.edited_losses import Arm, CausalLosses, SplicedLosses
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import TokenBatch
from lingact.errors import UserError
from lingact.models.lm import BlockOutput, LanguageModel
from lingact.models.sae import Dictionaries, Dictionary
from lingact.runtime.resumable_passes import resumable, token_bar

BlockEdit = Callable[[Float[Tensor, "batch seq d_model"]], Float[Tensor, "batch seq d_model"]]
"""The output of a block -> what takes its place."""
TokenEdit = Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token d_model"]]
"""Residuals of the kept tokens in float32 -> what takes their place."""
Condition = dict[int, TokenEdit]
"""Layer -> edit; all layers are edited in one forward pass, so a later edit sees what the earlier ones did. Empty: the model as it is."""


# --- edits ---------------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def edited(blocks: nn.ModuleList, edits: dict[int, BlockEdit]) -> Iterator[None]:
    """While open, the outputs of the given blocks are replaced by what `edits` makes of them."""

    def hook_of(edit: BlockEdit) -> Callable[[nn.Module, tuple[object, ...], BlockOutput], BlockOutput]:
        def hook(_module: nn.Module, _inputs: tuple[object, ...], output: BlockOutput) -> BlockOutput:
            return edit(output) if isinstance(output, Tensor) else (edit(output[0]), *output[1:])

        return hook

    wanted = [(blocks[layer], hook_of(edit)) for layer, edit in edits.items()]
    handles = [block.register_forward_hook(hook) for block, hook in wanted]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def on_kept(edit: TokenEdit, keep: Bool[Tensor, "batch seq"]) -> BlockEdit:
    """The edit applied where `keep` is True; everything else stays as it is, and so does the dtype."""

    def apply(x: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        changed = x.clone()
        changed[keep] = edit(x[keep].float()).to(x.dtype)
        return changed

    return apply


def reconstructed(dictionary: Dictionary) -> TokenEdit:
    """The SAE's reconstruction in place of the residual."""
    return lambda x: dictionary.decode(dictionary.encode(x))


def scaled_latents(dictionary: Dictionary, latents: Sequence[int], dose: float) -> TokenEdit:
    """`x + (dose - 1) sum_j f_j(x) d_j` over the latents: dose 0 ablates them, 1 changes nothing. The SAE's error stays in place.

    `f_j` is the folded activation and `d_j` the decoder row of norm 1, so `f_j d_j` is what `Dictionary.decode` adds for the latent.

    Raises:
        UserError: the SAE rescales each token, so that a latent's contribution is not `f_j d_j`.
    """
    normalisation = dictionary.sae.cfg.normalize_activations
    if normalisation in ("layer_norm", "constant_norm_rescale"):
        raise UserError(
            f"the SAE of layer {dictionary.layer} normalises every token ('{normalisation}'), which ablation and scaling do not support; choose "
            "SAEs that read the residual stream as it is, or leave the causal checks out"
        )
    chosen, rows = list(latents), unit_rows(dictionary, latents)
    return lambda x: x + (dose - 1) * (dictionary.encode(x)[:, chosen] @ rows)


def scaled_direction(direction: Float[Tensor, " d_model"], dose: float) -> TokenEdit:
    """`x + (dose - 1) (x . v) v` for the unit vector v: dose 0 projects it out (Arditi et al. 2024, eq. 4), 1 changes nothing."""
    return lambda x: x + (dose - 1) * (x @ direction)[:, None] * direction


def shifted(vector: Float[Tensor, " d_model"]) -> TokenEdit:
    """`x + vector` on every kept token."""
    return lambda x: x + vector


def unit_rows(dictionary: Dictionary, latents: Sequence[int]) -> Float[Tensor, "latent d_model"]:
    """Decoder rows of the latents, scaled to norm 1."""
    return nn.functional.normalize(dictionary.sae.W_dec[list(latents)].float(), dim=-1)


# --- one pass ------------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def nll_under(lm: LanguageModel, batch: TokenBatch, condition: Condition) -> tuple[Float[np.ndarray, " predicted"], Int[np.ndarray, " predicted"]]:
    """Cross-entropy in nats of every predicted token of a batch under the condition, and the sentence it belongs to."""
    keep = batch.keep.to(lm.device)
    with edited(lm.blocks, {layer: on_kept(edit, keep) for layer, edit in condition.items()}):
        _, predictions = lm.residuals(batch, (), predict=True)
    assert predictions is not None
    nll = predictions.nll()
    return nll.double().cpu().numpy(), batch.predicted_sentence.numpy()


def _summed(
    lm: LanguageModel,
    corpus: ParallelCorpus,
    conditions: Sequence[Condition],
    *,
    batch_tokens: int,
    header: dict[str, str],
    path: Path | None,
    title: str,
) -> dict[str, np.ndarray]:
    """`nll.<code>`, Float["condition sentence"], and `predicted.<code>`, Int["sentence"]. One step is one batch under one condition."""
    count = len(corpus.ids)
    state: dict[str, np.ndarray] = {f"nll.{code}": np.zeros((len(conditions), count)) for code in corpus.texts}
    state |= {f"predicted.{code}": np.zeros(count, np.int64) for code in corpus.texts}
    steps = [
        (code, batch, number)
        for code, texts in corpus.texts.items()
        for batch in lm.tokens.batches(lm.tokens.windows(texts), batch_tokens)
        for number in range(len(conditions))
    ]

    def add(step: tuple[str, TokenBatch, int]) -> None:
        code, batch, number = step
        nll, sentence = nll_under(lm, batch, conditions[number])
        np.add.at(state[f"nll.{code}"][number], sentence, nll)
        if number == 0:
            np.add.at(state[f"predicted.{code}"], sentence, 1)

    def tokens(step: tuple[str, TokenBatch, int]) -> int:
        return int(step[1].attention.sum())

    # The number of finished steps means something only for the same sentences in the same order and batches.
    header = header | {"sentences": corpus.sha256, "order": " ".join(corpus.texts), "batch_tokens": str(batch_tokens)}
    with token_bar(sum(map(tokens, steps)), title) as bar:
        resumable(path, header, state, steps, add, tokens=tokens, bar=bar)
    return state


def spliced_losses(
    lm: LanguageModel, sae_sets: dict[str, Dictionaries], corpus: ParallelCorpus, *, batch_tokens: int, header: dict[str, str], path: Path | None
) -> SplicedLosses:
    """Cross-entropy of every language with the SAE's reconstruction spliced in, layer by layer; with zeros spliced in, as the scale's other end.

    Args:
        lm: the model.
        sae_sets: sets of SAEs by name; all have the same layers.
        corpus: the sentences to use.
        batch_tokens: padded tokens per forward pass.
        header: identity of model, SAEs and corpus.
        path: where the pass is saved, so that it can be continued; None saves nothing.

    Raises:
        UserError: the file at `path` is of another pass.
    """
    layers = tuple(next(iter(sae_sets.values())))
    conditions: list[Condition] = [{}, *({layer: torch.zeros_like} for layer in layers)]
    conditions += [{layer: reconstructed(dictionaries[layer])} for dictionaries in sae_sets.values() for layer in layers]
    header = header | {"layers": json.dumps(layers), "sae_sets": json.dumps(list(sae_sets))}
    arrays = _summed(lm, corpus, conditions, batch_tokens=batch_tokens, header=header, path=path, title="splicing")
    return SplicedLosses.from_arrays(layers, list(sae_sets), list(corpus.texts), arrays)


@dataclass(frozen=True)
class Intervention:
    """An arm and what it edits: latents or unit directions by layer, all in the same forward pass.

    `scale` multiplies what is there: `x + (dose - 1) sum_j f_j(x) d_j`, or `x + (dose - 1) (x . v) v`.
    `steer` adds to every kept token: `x + dose m sum_j d_j / sqrt(|S|)`, or `x + dose m v`, with m the layer's mean residual norm.
    """

    arm: Arm
    latents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    directions: dict[int, Float[np.ndarray, " d_model"]] = field(default_factory=dict)
    """Layer -> unit vector v, for `diffmean`."""
    norms: dict[int, float] = field(default_factory=dict)
    """Layer -> mean residual norm m, for `steer`."""

    def __post_init__(self) -> None:
        latents, directions = set(self.latents), set(self.directions)
        assert all(self.latents.values()), f"{self.arm}: a layer without latents"
        assert not (directions if self.arm.kind != "diffmean" else latents), f"{self.arm}: latents and directions are not mixed"
        assert self.arm.mode == "scale" or set(self.norms) >= latents | directions, f"{self.arm}: steering needs the norm of every layer"

    @property
    def sha256(self) -> str:
        """Hash of what is edited."""
        directions = [(layer, np.asarray(v, np.float32).tobytes().hex()) for layer, v in sorted(self.directions.items())]
        content = json.dumps([sorted(self.latents.items()), directions, sorted(self.norms.items())])
        return hashlib.sha256(content.encode()).hexdigest()

    def condition(self, dictionaries: Dictionaries, device: torch.device) -> Condition:
        """The edits of all its layers."""
        mode, dose = self.arm.mode, self.arm.dose
        directions = {layer: torch.as_tensor(v, dtype=torch.float32, device=device) for layer, v in self.directions.items()}
        if mode == "scale":
            scaled = {layer: scaled_latents(dictionaries[layer], latents, dose) for layer, latents in self.latents.items()}
            return scaled | {layer: scaled_direction(v, dose) for layer, v in directions.items()}
        sums = {layer: unit_rows(dictionaries[layer], latents).sum(dim=0) / len(latents) ** 0.5 for layer, latents in self.latents.items()}
        return {layer: shifted(dose * self.norms[layer] * v) for layer, v in (sums | directions).items()}


def causal_losses(
    lm: LanguageModel,
    dictionaries: Dictionaries,
    corpus: ParallelCorpus,
    interventions: Sequence[Intervention],
    *,
    batch_tokens: int,
    header: dict[str, str],
    path: Path | None,
) -> CausalLosses:
    """Cross-entropy of every language under every intervention.

    Args:
        lm: the model.
        dictionaries: the SAEs that the interventions' latents belong to.
        corpus: the sentences to use.
        interventions: what is done to the model, one at a time.
        batch_tokens: padded tokens per forward pass.
        header: identity of model, SAEs and corpus.
        path: where the pass is saved, so that it can be continued; None saves nothing.

    Raises:
        UserError: the file at `path` is of another pass, or an SAE normalises every token.
    """
    conditions: list[Condition] = [{}, *(i.condition(dictionaries, lm.device) for i in interventions)]
    arms = tuple(i.arm for i in interventions)
    contents = hashlib.sha256("".join(i.sha256 for i in interventions).encode()).hexdigest()
    header = header | {"arms": json.dumps([astuple(arm) for arm in arms]), "interventions": contents}
    arrays = _summed(lm, corpus, conditions, batch_tokens=batch_tokens, header=header, path=path, title="intervening")
    return CausalLosses.from_arrays(arms, list(corpus.texts), arrays)


NEIGHBOURS = 20
"""A matched latent is drawn from so many nearest ones."""
RATE_FACTOR, MASS_FACTOR = 1.5, 2.0
"""A match fires and activates at most so many times as often and as much, or as seldom and as little."""


def matched_random(rates: Float[np.ndarray, " d_sae"], mass: Float[np.ndarray, " d_sae"], chosen: Sequence[int], seed: int) -> list[int] | None:
    """For each chosen latent another one of the layer that fires about as often and activates about as much, without replacement.

    The control for "any latents would do": taking them away takes away about as much. None where a latent has no other within `RATE_FACTOR` and
    `MASS_FACTOR`: then there is no such control, and a worse one would flatter the chosen latents.

    Args:
        rates: firing rate of each latent.
        mass: mean activation per token of each latent.
        chosen: the latents to match; they are never drawn.
        seed: of the draws among the `NEIGHBOURS` nearest.
    """
    free = (rates > 0) & (mass > 0)
    free[list(chosen)] = False
    pool = np.flatnonzero(free)
    random = np.random.default_rng(seed)
    matched = []
    for latent in chosen:
        if rates[latent] <= 0 or mass[latent] <= 0:
            return None
        off = np.maximum(
            np.abs(np.log(rates[pool] / rates[latent])) / np.log(RATE_FACTOR), np.abs(np.log(mass[pool] / mass[latent])) / np.log(MASS_FACTOR)
        )
        near = np.argsort(off, kind="stable")[:NEIGHBOURS]
        near = near[off[near] <= 1]
        if not len(near):
            return None
        place = random.choice(near)
        matched.append(int(pool[place]))
        pool = np.delete(pool, place)
    return matched
