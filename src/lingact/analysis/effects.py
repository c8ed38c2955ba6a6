"""Tables from summed cross-entropies: the cost of splicing, the effects of interventions, and whether these are specific to their own language.

Effects are changes of the cross-entropy in nats per predicted token; positive means that the model predicts worse. Intervals are by a paired
bootstrap over documents, or else blocks or sentences (`bootstrap.Resampling`). They do not cover the choice of random latents, over whose draws arms
are averaged. `resampling` is that of the sentences of the losses.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from lingact.activations.edited_losses import ABLATION, NEUTRAL, Arm, CausalLosses, Mode, SplicedLosses
from lingact.activations.measurement import ADAPTER, BASE
from lingact.statistics.bootstrap import Resampling, holm, interval, p_value

Effects = dict[Arm, dict[str, Float[np.ndarray, " draw"]]]
"""Arm -> measured language -> effect, as draws."""
_Key = TypeVar("_Key")
"""Key of a row of a table."""
_PerSet = dict[tuple[str, str, int, str], Float[np.ndarray, " draw"]]
"""SAE set, language, layer and quantity -> number, as draws."""
_PerArm = dict[tuple[Arm, str], Float[np.ndarray, " draw"]]
"""Arm, and measured language or contrast -> effect, as draws."""
ADAPTER_MINUS_BASE = "adapter_minus_base"
"""Value of the column `variant` for the paired difference."""
OWN_MINUS_OTHERS, OWN_MINUS_RANDOM = "own_minus_others", "own_minus_random"


def _cells(draws: Float[np.ndarray, " draw"], resampling: Resampling, confidence: float) -> dict[str, float | int | str]:
    estimate, low, high = interval(draws, confidence, resampling.clusters)
    return resampling.columns | {"estimate": float(estimate), "lo": float(low), "hi": float(high)}


def _by_variant(
    before: dict[_Key, Float[np.ndarray, " draw"]], after: dict[_Key, Float[np.ndarray, " draw"]] | None
) -> Iterator[tuple[dict[str, str], dict[_Key, Float[np.ndarray, " draw"]]]]:
    """The draws of the base model; if there are any of the adapted model, also those, and after minus before on the same resamples.

    Both sides have the same keys, because the same latents were edited in the same sentences.
    """
    if after is None:
        yield {}, before
        return
    assert before.keys() == after.keys()
    for variant, found in ((BASE, before), (ADAPTER, after), (ADAPTER_MINUS_BASE, {key: after[key] - draws for key, draws in before.items()})):
        yield {"variant": variant}, found


def spliced_table(
    losses: SplicedLosses, resampling: Resampling, *, resamples: int, confidence: float, seed: int, after: SplicedLosses | None = None
) -> pd.DataFrame:
    """One row per SAE set, language, layer and quantity.

    `ce_increase`: spliced minus base, in nats per predicted token. `loss_recovered`: (zero - spliced) / (zero - base), 1 if splicing costs nothing
    and 0 if it costs as much as zeros; nan if zeros cost nothing.

    Args:
        after: the same losses of the adapted model, on the same sentences. Then there are rows of both (`variant` base and adapter; for the latter,
            "base" above means the adapted model without splicing), and of their paired difference (adapter_minus_base). None: no column `variant`.
    """
    weights = resampling.weights(resamples, seed)
    by_variant = _by_variant(_spliced(losses, weights), None if after is None else _spliced(after, weights))
    return pd.DataFrame(
        variant | {"sae_set": sae_set, "language": code, "layer": layer, "quantity": quantity} | _cells(draws, resampling, confidence)
        for variant, found in by_variant
        for (sae_set, code, layer, quantity), draws in found.items()
    )


def _spliced(losses: SplicedLosses, weights: Float[np.ndarray, "draw sentence"]) -> _PerSet:
    found: _PerSet = {}
    for sae_set, by_language in losses.spliced.items():
        for code, sums in by_language.items():
            base, predicted = weights @ losses.base[code], weights @ losses.predicted[code]
            for layer, zero, spliced in zip(losses.layers, losses.zero[code] @ weights.T, sums @ weights.T, strict=True):
                damage = np.where(zero > base, zero - base, np.nan)
                found[sae_set, code, layer, "ce_increase"] = (spliced - base) / predicted
                found[sae_set, code, layer, "loss_recovered"] = (zero - spliced) / damage
    return found


def effects(losses: CausalLosses, weights: Float[np.ndarray, "draw sentence"]) -> Effects:
    """Change of the cross-entropy per predicted token against no intervention; arms of the same name are averaged."""
    found: Effects = {}
    for arm in dict.fromkeys(losses.arms):
        repeats = [row for row, other in enumerate(losses.arms) if other == arm]
        found[arm] = {
            code: (weights @ (nll[repeats].mean(axis=0) - losses.base[code])) / (weights @ losses.predicted[code]) for code, nll in losses.nll.items()
        }
    return found


def _named(arm: Arm) -> dict[str, object]:
    return {"owner": arm.owner, "kind": arm.kind, "mode": arm.mode, "dose": arm.dose}


def causal_table(
    losses: CausalLosses, resampling: Resampling, *, resamples: int, confidence: float, seed: int, after: CausalLosses | None = None
) -> pd.DataFrame:
    """One row per arm (owner, kind, mode, dose) and measured language: change of the cross-entropy in nats per predicted token.

    Args:
        after: as in `spliced_table`.
    """
    weights = resampling.weights(resamples, seed)

    def cells(of: CausalLosses) -> _PerArm:
        return {(arm, code): draws for arm, by_language in effects(of, weights).items() for code, draws in by_language.items()}

    return pd.DataFrame(
        variant | _named(arm) | {"measured": code} | _cells(draws, resampling, confidence)
        for variant, found in _by_variant(cells(losses), None if after is None else cells(after))
        for (arm, code), draws in found.items()
    )


def selectivity_table(
    losses: CausalLosses, resampling: Resampling, *, resamples: int, confidence: float, seed: int, after: CausalLosses | None = None
) -> pd.DataFrame:
    """One row per arm and contrast.

    Latents that the user has named belong to no language and have no contrasts.

    `own_minus_others`: effect on the owner minus the mean effect on the other languages. `own_minus_random`: effect of the owner's specific
    latents on the owner minus that of random latents at the same dose. `p` is from `bootstrap.p_value`; `p_holm` corrects it over the
    owners, for each kind, mode, dose and contrast (and variant).

    Args:
        after: as in `spliced_table`.
    """
    weights = resampling.weights(resamples, seed)
    rows = [
        variant | _named(arm) | {"contrast": name} | _cells(draws, resampling, confidence) | {"p": float(p_value(draws, resampling.clusters))}
        for variant, found in _by_variant(_contrasts(losses, weights), None if after is None else _contrasts(after, weights))
        for (arm, name), draws in found.items()
    ]
    family = [*(["variant"] if after is not None else []), "kind", "mode", "dose", "contrast"]
    columns = [*family[:-4], "owner", "kind", "mode", "dose", "contrast", "n", "resampled", "units", "estimate", "lo", "hi", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table.groupby(family)["p"].transform(lambda p: holm(p.to_numpy()))
    return table


def _contrasts(losses: CausalLosses, weights: Float[np.ndarray, "draw sentence"]) -> _PerArm:
    effect, found = effects(losses, weights), {}
    for arm, by_language in ((arm, own) for arm, own in effect.items() if arm.owner in own):
        own, others = by_language[arm.owner], [draws for code, draws in by_language.items() if code != arm.owner]
        if others:
            found[arm, OWN_MINUS_OTHERS] = own - np.mean(others, axis=0)
        control = Arm(arm.owner, "random", arm.mode, arm.dose)
        if arm.kind == "specific" and control in effect:
            found[arm, OWN_MINUS_RANDOM] = own - effect[control][arm.owner]
    return found


def of_variant(table: pd.DataFrame, variant: str) -> pd.DataFrame:
    """The rows of a variant, without the column `variant`. A table of the base model alone has no such column, and is returned whole."""
    return table[table["variant"] == variant].drop(columns="variant").reset_index(drop=True) if "variant" in table else table


# --- the tables in words -------------------------------------------------------------------------------------------------------------------------


def causal_text(selectivity: pd.DataFrame, causal: pd.DataFrame, *, confidence: float) -> str:
    """What ablation and dose-response show, and what they do not.

    Args:
        selectivity: `selectivity_table`.
        causal: `causal_table` of the same losses.
        confidence: such as 0.95; a contrast counts as shown where its Holm-corrected p is below the rest.
    """
    alpha = 1 - confidence
    specific = causal[(causal["kind"] == "specific") & (causal["owner"] == causal["measured"])]
    ablated = specific[(specific["mode"] == "scale") & (specific["dose"] == ABLATION)]
    contrasts = selectivity[(selectivity["mode"] == "scale") & (selectivity["dose"] == ABLATION)]
    families = {(str(kind), str(contrast)): rows for (kind, contrast), rows in contrasts.groupby(["kind", "contrast"], sort=False)}
    raised = list(ablated.loc[ablated["lo"] > 0, "owner"])
    sentences = []
    if not ablated.empty:
        sentences.append(
            f"Ablating a language's specific latents raises its own loss for {_counted(raised, len(ablated))} ({confidence:.0%} intervals above 0); "
            f"the mean change is {_signed(ablated['estimate'].mean())} nats per predicted token."
        )
    sentences += [_contrast_text(subject, families[key], comparison, alpha) for key, (subject, comparison) in _CLAIMS.items() if key in families]
    if families.keys() >= {_OTHERS, _RANDOM}:
        selective = set(raised) & set(_shown(families[_OTHERS], alpha)) & set(_shown(families[_RANDOM], alpha))
        sentences.append(
            f"Languages whose own loss rises, and lies above both comparisons: {_listed(selective)}. The p-values cover the choice of the "
            f"{contrasts['resampled'].iloc[0]}, not the draw of the random latents."
        )
    modes: tuple[tuple[Mode, str], ...] = (("scale", "scaled"), ("steer", "added"))
    sentences += [_monotone_text(specific[specific["mode"] == mode], NEUTRAL[mode], verb) for mode, verb in modes]
    return " ".join(filter(None, sentences)) or "No ablation was run and no dose was varied, so nothing is said about causes."


_OTHERS, _RANDOM = ("specific", OWN_MINUS_OTHERS), ("specific", OWN_MINUS_RANDOM)
_CLAIMS = {
    _OTHERS: ("This change", "the mean change of the other languages"),
    _RANDOM: ("It", "the change under ablation of random latents that fire as often and as strongly"),
    ("random", OWN_MINUS_OTHERS): ("With such random latents ablated, the change of the own loss", "the mean change of the other languages"),
    ("diffmean", OWN_MINUS_OTHERS): (
        "With a language's DiffMean direction projected out, the change of its own loss", "the mean change of the other languages",
    ),
}  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def _shown(rows: pd.DataFrame, alpha: float, sign: int = 1) -> list[str]:
    return list(rows.loc[(rows["p_holm"] < alpha) & (sign * rows["estimate"] > 0), "owner"])


def _listed(codes: Iterable[str]) -> str:
    return ", ".join(sorted(codes)) or "no language"


def _counted(codes: Sequence[str], count: int) -> str:
    return f"{len(codes)} of {count} languages" + (f" ({_listed(codes)})" if codes else "")


def _contrast_text(subject: str, rows: pd.DataFrame, comparison: str, alpha: float) -> str:
    """For how many owners the effect lies above the comparison, for how many below, and for how many no difference is shown."""
    above, short = _shown(rows, alpha), _shown(rows, alpha, sign=-1)
    return (
        f"{subject} lies above {comparison} for {_counted(above, len(rows))} and falls short of it for {_counted(short, len(rows))} (Holm-corrected "
        f"p below {alpha:.2g}); no difference is shown for {len(rows) - len(above) - len(short)}. The mean difference is "
        f"{_signed(rows['estimate'].mean())} nats per predicted token."
    )


def _monotone_text(own: pd.DataFrame, neutral: float, verb: str) -> str:
    """For how many owners the effect on their own loss always increases with the distance from the neutral dose; empty if there are no curves."""
    judged = {str(owner): found for owner, cells in own.groupby("owner", sort=False) if (found := is_monotone(cells, neutral)) is not None}
    if not judged:
        return ""
    growing = [owner for owner, found in judged.items() if found]
    return (
        f"When a language's specific latents are {verb} in several doses, its own loss rises with every step away from the dose that changes "
        f"nothing for {_counted(growing, len(judged))} (point estimates)."
    )


def is_monotone(cells: pd.DataFrame, neutral: float) -> bool | None:
    """Whether the effect grows with the distance from the neutral dose, where it is zero, on each side of it.

    Args:
        cells: `dose` and `estimate` of one curve.
        neutral: the dose that changes nothing.

    Returns:
        None if neither side has two doses, so that there is no curve to judge.
    """
    sides = [cells[cells["dose"] > neutral], cells[cells["dose"] < neutral]]
    curves = [np.array([0.0, *side.iloc[(side["dose"] - neutral).abs().argsort(kind="stable")]["estimate"]]) for side in sides if not side.empty]
    if all(len(curve) < 3 for curve in curves):
        return None
    return bool(all((np.diff(curve) > 0).all() for curve in curves))
