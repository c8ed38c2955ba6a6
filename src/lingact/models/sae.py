"""Sparse autoencoders: check that they fit the model; features before and after their threshold."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE
from torch import Tensor
from tqdm import tqdm

from lingact.config.model import SaeSet
from lingact.errors import UserError
from lingact.models.active_latents import ActiveLatents
from lingact.models.finite import describe, nonfinite
from lingact.models.lm import LanguageModel
from lingact.models.sae_files import no_threshold, wrong_width
from lingact.models.sae_sources import check_release, load_sae, source_of

Sae = SAE[Any]
"""An SAE of any architecture; each has settings of its own class."""
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")
"""Architectures with one non-negative activation per latent and token. (Batch-top-k and Matryoshka SAEs are stored as jumprelu.)"""
_OUTPUT = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)(?:\.hook_resid_post|\.output)?")
_INPUT = re.compile(r"blocks\.(\d+)\.hook_resid_pre")
"""Names of the residual stream between blocks, in TransformerLens and in Hugging Face."""


class Dictionary:
    """The SAE of one layer, which is never trained. Activations are folded: multiplied by the norms of the decoder's rows.

    It is not an `nn.Module`, so that it is in no checkpoint and no optimiser.
    """

    def __init__(self, sae: Sae, layer: int) -> None:
        self.sae = sae.requires_grad_(False).eval()
        self.layer = layer
        norms: Float[Tensor, " d_sae"] = sae.W_dec.norm(dim=-1)
        self.decoder_norms = norms
        # Some top-k SAEs already fold.
        self.norms = torch.ones_like(norms) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else norms
        """Decoder norms: multiply the SAE's own activations to get folded ones."""
        threshold = getattr(sae, "threshold", None)
        self.threshold: Float[Tensor, " d_sae"] | None = threshold.detach() if threshold is not None else None
        """JumpReLU threshold in the SAE's own units. None for other architectures."""

    @property
    def width(self) -> int:
        """Number of latents."""
        return self.norms.shape[0]

    def encode(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Folded activations f >= 0 after the threshold. A latent that does not fire on a token passes no gradient to it."""
        return self.sae.encode(x) * self.norms

    def active(self, x: Float[Tensor, "token d_model"], *, bandwidth: float | None = None) -> ActiveLatents:
        """The latents that fire, as `encode` gives them, with the same gradient.

        Of a JumpReLU SAE the pre-activations are read twice, and the gradient goes back through the rows of the latents that fire: one dense product
        in place of those of encoder, decoder and their gradients.

        Args:
            bandwidth: of the surrogate gradient, as in `encode_straight_through`. Latents in its window are among the active ones, with the value 0.

        Raises:
            UserError: a bandwidth is given, and the SAE has no threshold.
        """
        sae = self.sae
        if type(sae) is not JumpReLUSAE or self.threshold is None:
            if bandwidth is not None:  # latents in the window have the value 0, too
                features = self.encode_straight_through(x, bandwidth)
                return ActiveLatents.of(features, torch.ones_like(features, dtype=torch.bool), None)
            features = self.encode(x)
            return ActiveLatents.of(features, (features <= 0).logical_not_(), None)
        read = sae.process_sae_in(x)
        with torch.no_grad():
            before = torch.addmm(sae.b_enc, read, sae.W_enc)
        return self._opened(before, lambda token, latent: _selected(read, sae.W_enc, before, token, latent), bandwidth)

    def active_and_scaled(
        self, x: Float[Tensor, "token d_model"], factor: Float[Tensor, " token"], *, bandwidth: float | None = None
    ) -> tuple[ActiveLatents, ActiveLatents]:
        """The latents that fire on `x`, and those that fire on `x` times a factor for each token.

        Pre-activations are linear in the input but for the bias, so that of a JumpReLU SAE one product serves both.

        Args:
            bandwidth: of the surrogate gradient of the latter ones, as in `active`.
        """
        sae = self.sae
        if type(sae) is not JumpReLUSAE or self.threshold is None or sae.cfg.normalize_activations != "none":
            return self.active(x), self.active(x * factor[:, None], bandwidth=bandwidth)
        with torch.no_grad():
            product = x @ sae.W_enc
            bias = sae.b_enc - (sae.b_dec @ sae.W_enc if sae.cfg.apply_b_dec_to_input else 0)

        def selected(token: Tensor, latent: Tensor) -> Tensor:
            return _selected(x, sae.W_enc, product, token, latent)

        own = self._opened(product + bias, lambda token, latent: selected(token, latent) + bias[latent], None)
        with torch.no_grad():
            before = (product * factor[:, None]).add_(bias)
        return own, self._opened(before, lambda token, latent: selected(token, latent) * factor[token] + bias[latent], bandwidth)

    def _opened(
        self, before: Float[Tensor, "token d_sae"], value: Callable[[Tensor, Tensor], Float[Tensor, " active"]], bandwidth: float | None
    ) -> ActiveLatents:
        """Pre-activations of a JumpReLU SAE that are above its thresholds, or in the window below.

        Args:
            before: without gradient.
            value: of tokens and latents: the same pre-activations, with gradient.
        """
        assert self.threshold is not None
        # A latent without a decoder row represents nothing.
        opens = torch.where(self.decoder_norms > 0, self.threshold.clamp_min(0), torch.inf)
        open_ = (before <= opens).logical_not_()
        if bandwidth is None:
            return ActiveLatents.at(open_, value, self.norms)
        # Of an infinite threshold no window is computed: no share of it is a number.
        window = open_ | (before > torch.where(opens.isfinite(), opens * (1 - bandwidth), torch.inf))

        def through(token: Tensor, latent: Tensor) -> Tensor:
            found = value(token, latent)
            return found - (found * ~open_[token, latent]).detach()

        return ActiveLatents.at(window, through, self.norms)

    def decode_active(self, active: ActiveLatents) -> Float[Tensor, "token d_model"]:
        """As `decode`, from the active latents alone."""
        sae = self.sae
        # Folded activations are those of decoder rows of length one. A latent whose row is zero is never active.
        directions = 1 / self.decoder_norms.clamp_min(1e-12)
        total = sae.hook_sae_recons(active.weighted_rows(sae.W_dec, directions) + sae.b_dec)
        return sae.reshape_fn_out(sae.run_time_activation_norm_fn_out(total), sae.d_head)

    def encode_straight_through(self, x: Float[Tensor, "token d_model"], bandwidth: float) -> Float[Tensor, "token d_sae"]:
        """The same values as `encode`, with the gradient of a ReLU that opens at `(1 - bandwidth)` of each threshold.

        A latent that is below its threshold by less than this share gets the gradient that it would have if it fired.

        Raises:
            UserError: the SAE has no threshold.
        """
        if self.threshold is None:
            raise UserError(no_threshold(self.layer, self.sae.cfg.architecture()))
        pre = self.pre_activations(x)
        gate = pre > self.threshold
        # A latent with a threshold of zero has the window of the plain gate.
        window = gate | (pre > self.threshold * (1 - bandwidth))
        opened = pre * window
        return (opened + (pre.relu() * gate - opened).detach()) * self.norms

    def pre_activations(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Pre-activations, which the SAE compares with its threshold, in its own units."""
        return self._before_and_after(x)[0]

    def folded_pre_activations(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Pre-activations in the units of `encode`. They do not change if a latent is scaled up in the encoder and down in the decoder."""
        return self.pre_activations(x) * self.norms

    def folded_before_and_after(self, x: Float[Tensor, "token d_model"]) -> tuple[Float[Tensor, "token d_sae"], Float[Tensor, "token d_sae"]]:
        """`folded_pre_activations` and `encode`, from one product."""
        before, after = self._before_and_after(x)
        return before * self.norms, after * self.norms

    def _before_and_after(self, x: Float[Tensor, "token d_model"]) -> tuple[Float[Tensor, "token d_sae"], Float[Tensor, "token d_sae"]]:
        caught: list[Tensor] = []
        handle = self.sae.hook_sae_acts_pre.register_forward_hook(lambda _m, _i, output: caught.append(output))
        try:
            after = self.sae.encode(x)
        finally:
            handle.remove()
        return caught[0], after

    def decode(self, features: Float[Tensor, "token d_sae"]) -> Float[Tensor, "token d_model"]:
        """The residual that folded activations represent."""
        # A latent whose decoder row is zero is never active.
        return self.sae.decode(features / self.norms.clamp_min(1e-12))


def _selected(
    x: Float[Tensor, "token d_model"], weight: Float[Tensor, "d_model d_sae"], product: Float[Tensor, "token d_sae"], token: Tensor, latent: Tensor
) -> Float[Tensor, " active"]:
    """Some entries of `x @ weight`, which is known already but for constants. Their gradient reaches `x` through the selected columns alone."""
    return _Selected.apply(x, weight, product, token, latent) if x.requires_grad and torch.is_grad_enabled() else product[token, latent]


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, product: Tensor, token: Tensor, latent: Tensor) -> Tensor:
        ctx.save_for_backward(weight, token, latent)
        ctx.tokens = len(x)
        return product[token, latent]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, token, latent = ctx.saved_tensors
        counts = torch.bincount(token, minlength=ctx.tokens)
        starts = counts.cumsum(dim=0) - counts
        rows = weight.T.contiguous()
        return torch.nn.functional.embedding_bag(latent, rows, starts, per_sample_weights=grads[0], mode="sum"), None, None, None, None


Dictionaries = dict[int, Dictionary]
"""Layer number -> its SAE."""


def load_dictionaries(spec: SaeSet, layers: tuple[int, ...], lm: LanguageModel) -> tuple[Dictionaries, dict[str, Any]]:
    """Load the SAEs of these layers in float32 on the model's device, check them against the model, and describe them for the manifest.

    Raises:
        UserError: a release, id or file is missing, or an SAE does not fit the model.
    """
    ids = {layer: spec.id_of(layer) for layer in layers}
    check_release(spec.release, ids)
    dictionaries = {}
    for layer, sae_id in tqdm(ids.items(), desc="SAEs", leave=False, dynamic_ncols=True):
        sae = load_sae(spec.release, sae_id, str(lm.device))
        _check_fit(sae, f"{spec.release} {sae_id}", layer, lm)
        dictionaries[layer] = Dictionary(sae, layer)
        _check_finite(dictionaries[layer], f", {source_of(spec.release, sae_id)}")
    saes = [dictionary.sae for dictionary in dictionaries.values()]
    norms = torch.cat([d.norms for d in dictionaries.values()])
    identity = {
        "release": spec.release,
        "id": spec.id,
        "layers": list(layers),
        "sha256": weights_digest(dictionaries),
        "architecture": sorted({sae.cfg.architecture() for sae in saes}),
        "width": sorted({d.width for d in dictionaries.values()}),
        "trained_on": sorted({str(sae.cfg.metadata.model_name) for sae in saes}),
        "input_normalisation": sorted({sae.cfg.normalize_activations for sae in saes}),
        "decoder_norms": [round(norms.min().item(), 6), round(norms.max().item(), 6)],
        "folded": True,
    }
    return dictionaries, identity


def dictionaries_of(saes: Mapping[int, SAE[Any]], lm: LanguageModel) -> Dictionaries:
    """SAEs that are in memory, checked against the model. They are frozen and moved to the model's device, in float32.

    Args:
        saes: layer -> the SAE that reads the output of its block.

    Raises:
        UserError: there is none, or one does not fit the model.
    """
    beyond = [layer for layer in saes if not 0 <= layer < len(lm.blocks)]
    if beyond or not saes:
        raise UserError(f"saes: {f'layers {beyond} do not exist' if saes else 'none given'}; the model has layers 0 to {len(lm.blocks) - 1}")
    dictionaries = {}
    for layer, sae in sorted(saes.items()):
        _check_fit(sae, f"of layer {layer}", layer, lm)
        dictionaries[layer] = Dictionary(sae.to(lm.device, torch.float32), layer)
        _check_finite(dictionaries[layer], "")
    return dictionaries


def weights_digest(dictionaries: Dictionaries) -> str:
    """sha256 over settings and weights of all SAEs, layer by layer in name order."""
    digest = hashlib.sha256()
    for dictionary in dictionaries.values():
        settings = {name: value for name, value in dictionary.sae.cfg.to_dict().items() if name not in ("device", "dtype", "metadata")}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        for name, weight in sorted(dictionary.sae.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@contextmanager
def offloaded(dictionaries: Iterable[Dictionary], *, decoders_only: bool) -> Iterator[None]:
    """While open, these SAEs, or only their decoders, are in host memory, which frees memory of the device."""
    moved = [p for d in dictionaries for name, p in d.sae.named_parameters() if not decoders_only or name == "W_dec"]
    homes = [parameter.device for parameter in moved]
    for parameter in moved:
        parameter.data = parameter.data.cpu()
    try:
        yield
    finally:
        for parameter, home in zip(moved, homes, strict=True):
            parameter.data = parameter.data.to(home)


# --- checks --------------------------------------------------------------------------------------------------------------------------------


def _check_fit(sae: Sae, name: str, layer: int, lm: LanguageModel) -> None:
    """Refuse an SAE that was trained on something else than the residuals that it would read.

    Raises:
        UserError: saying what to do.
    """
    kind, metadata = sae.cfg.architecture(), sae.cfg.metadata
    if kind not in ARCHITECTURES:
        raise UserError(f"SAE {name} is of the kind '{kind}'; lingact reads {', '.join(ARCHITECTURES)}. Choose other SAEs")
    if sae.cfg.d_in != lm.d_model:
        raise UserError(wrong_width(name, sae.cfg.d_in, lm.d_model))
    if sae.cfg.normalize_activations == "expected_average_only_in":
        raise UserError(
            f"SAE {name} was trained on inputs divided by their mean norm, which is not in its files; fold it in first: "
            "sae.fold_activation_norm_scaling_factor(d_in**0.5 / MEAN_NORM), then sae.save_model(FOLDER)"
        )
    if (metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise UserError(
            f"SAE {name} was trained on a model whose weights TransformerLens had centred (center_writing_weights); the plain model has other "
            "residuals. Choose other SAEs"
        )
    _check_place(metadata.hook_name, name, layer)
    _check_bos(metadata.prepend_bos, name, lm)


def _check_finite(dictionary: Dictionary, source: str) -> None:
    """Refuse an SAE with a weight, or a norm of a decoder row, that is not finite.

    A JumpReLU threshold of +inf is allowed: the latent never fires. Dead latents can be stored so, and `random_dictionaries` does it. The threshold
    is part of no sum.
    """
    weights = {**dictionary.sae.state_dict(), "decoder norms": dictionary.norms}
    spoiled = nonfinite(weights.items(), may_be_infinite=("threshold",))
    if spoiled:
        raise UserError(
            f"the SAE of layer {dictionary.layer}{source}: {describe(spoiled)}; its activations would not be numbers. Its "
            "training overflowed, or the file is damaged: choose other SAEs, leave the layer out in sae.layers, or download the file again"
        )


def _check_place(hook: str | None, name: str, layer: int) -> None:
    if hook is None:
        return
    after, before = _OUTPUT.fullmatch(hook), _INPUT.fullmatch(hook)
    place = after or before
    if place is None:
        raise UserError(f"SAE {name} was trained on '{hook}', lingact measures the outputs of blocks; choose SAEs on the residual stream")
    read = int(place[1]) if after else int(place[1]) - 1
    if read == layer:
        return
    advice = "which is one less; write {layer+1} in the id instead of {layer}" if before is not None else "choose an id whose {layer} matches"
    raise UserError(f"SAE {name} was trained on '{hook}', the output of block {read}, but is used for layer {layer}: {advice}")


def _check_bos(prepended: bool | None, name: str, lm: LanguageModel) -> None:
    """Refuse an SAE that was trained with BOS where the model has none, or the reverse: BOS changes all residuals after it.

    A tokenizer that has no BOS leaves no choice.
    """
    has = bool(lm.tokens.prefix)
    if prepended is None or prepended == has or lm.tokenizer.bos_token_id is None:
        return
    raise UserError(
        f"SAE {name} was trained on texts {'with' if prepended else 'without'} BOS at their beginning, but the model's tokenizer adds "
        f"{'one' if has else 'none'}; write model.bos={'true' if prepended else 'false'}"
    )
