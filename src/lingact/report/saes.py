"""The report of a run that trained SAEs, and the card that goes with them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from lingact.catalogue.licences import notice_of
from lingact.config.continued import trained_sets
from lingact.config.jobs import SaesConfig
from lingact.figures.saes import dead_curves, fit_heatmap
from lingact.report.page import Section, run_facts, write_report
from lingact.report.phrases import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EFFECTS = "Mixes compared: FVU of the first minus FVU of the second"
_OF_EFFECTS = (
    "An effect of the mix is the mean over SAE seeds. It is claimed (beyond_seeds) only where its interval excludes 0 and it is larger than any "
    "difference between two seeds of one mix (seed_spread). With one seed of a mix nobody knows, and both stay empty. "
    "If mixes do not differ, about one comparison in five passes with two seeds of each, and one in twenty with three."
)
_REFIT = (
    "How much the gap changes by tuning (after minus before), reference and target on the same model. Unchanged: by the SAEs as they were. "
    "Continued: by SAEs that were trained further on the base model. Refit: the base model by these, the adapted one by SAEs that were trained "
    "further on it with the same tokens. What the first two see and the last one does not is in the dictionary."
)


def fit_rows(fit: pd.DataFrame) -> list[dict[str, object]]:
    """One row per language with the mean FVU of each set over its layers."""
    own = fit[fit["quantity"] == "fvu"].assign(sae_set=_labels(fit))
    means = own.groupby(["language", "sae_set"], sort=False)["estimate"].mean().unstack("sae_set")
    return [{"language": str(code), **{str(name): f"{value:.3f}" for name, value in row.items()}} for code, row in means.iterrows()]


def refit_rows(refit: pd.DataFrame) -> list[dict[str, object]]:
    """One row per set and language: how much the gap changes by tuning, mean over layers, by each choice of SAEs."""
    change = refit[refit["quantity"] == "change"].groupby(["sae_set", "language", "saes"], sort=False)["estimate"].mean().unstack("saes")
    return [{str(name): cell for name, cell in row.items()} for row in change.map("{:+.3f}".format).reset_index().to_dict("records")]


def latent_rows(latents: pd.DataFrame) -> list[dict[str, object]]:
    """One row per set and layer."""
    shares = ("dead", "rare", "one_language")
    return [{str(name): f"{value:.3f}" if name in shares else value for name, value in row.items()} for row in latents.to_dict("records")]


def _labels(frame: pd.DataFrame) -> pd.Series:
    """The set; where it is judged on two models, with the model."""
    twice = frame.groupby("sae_set")["model"].transform("nunique") > 1
    return frame["sae_set"].where(~twice, frame["sae_set"] + " on " + frame["model"])


def sae_figures(tables: Mapping[str, pd.DataFrame]) -> "dict[str, Figure]":
    """The figures of the page by file name."""
    fit, latents = tables["fit"], tables["latents"]
    fvu = fit[fit["quantity"] == "fvu"]
    return {"fit": fit_heatmap(fvu.assign(label=_labels(fvu))), "dead": dead_curves(latents.assign(label=_labels(latents)))}


def write_saes(folder: Path, config: SaesConfig, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> Path:
    """Write the page. Returns its path.

    Args:
        figures: the files of `sae_figures`.
    """
    fit, latents = tables["fit"], tables["latents"]
    mean = fit[fit["quantity"] == "fvu"].groupby("sae_set", sort=False)["estimate"].mean()
    dead = latents.groupby("sae_set", sort=False)["dead"].mean()
    each = "; ".join(f"{name}: FVU {mean[name]:.3f}, {dead[name]:.1%} of the latents dead" for name in mean.index)
    lead = f"SAEs of {len(mean)} set{'s' if len(mean) > 1 else ''}, {config.saes.tokens:,} tokens each. Means over languages and layers: {each}."
    shown = {
        "Fraction of variance unexplained, mean over layers": pd.DataFrame(fit_rows(fit)),
        "By set, language and layer": fit,
        "Cross-entropy with reconstructions in place of the residual": tables["recovered"],
    }
    effects = {_EFFECTS: tables["mix_effects"]} if "mix_effects" in tables else {}
    overlap = {"Overlap of decoder directions, by the nearest one (shared: cosine of at least .7)": tables["overlap"]} if "overlap" in tables else {}
    sections = [
        Section("Fit by language", {"fit": figures["fit"]}, shown | effects, _OF_EFFECTS if effects else ""),
        Section("Latents", {"dead": figures["dead"]}, {"Dead, rare and single-language latents": latents, **overlap}),
        Section("Text", {}, {"Tokens that each set was trained on": tables["text"]}),
    ]
    if "refit" in tables:
        refit = {
            "Change of the gap, mean over layers": pd.DataFrame(refit_rows(tables["refit"])),
            "By set, SAEs, language and layer": tables["refit"],
        }
        sections.insert(0, Section("Refitted to the adapter", {}, refit, _REFIT))
    reading = [
        "All quality figures are of held-out documents, with intervals over documents. FVU is about each language's own mean residual.",
        "A latent is dead if it fires on none of the held-out tokens of all languages together, and rare if on fewer than one in ten thousand.",
        "The text of languages may differ in its kind (news, stories, documentation), so that differences of fit between languages may be of that.",
    ]
    return write_report(folder, "SAEs by language", lead, sections, run_facts(folder), reading=reading)


def card(config: SaesConfig, tables: Mapping[str, pd.DataFrame], sets: Sequence[str] | None = None, model: str | None = None) -> str:
    """`card.md`: what the SAEs are, what they were trained on, and how well they fit.

    Args:
        sets: to describe; None: all.
        model: its name; None: as in the configuration.
    """
    saes, text, fit = config.saes, tables["text"], tables["fit"]
    fit = fit if sets is None else fit[fit["sae_set"].isin(sets)]
    lines = [f"# SAEs for {model or config.model.name}", ""]
    lines += [f"{saes.architecture}, {saes.tokens:,} tokens each, windows of {saes.context} tokens.", ""]
    for name, (origin, _) in trained_sets(config).items():
        if name not in set(fit["sae_set"]):
            continue
        mix = config.seeded_sets[origin]
        own = text[text["sae_set"] == origin].groupby("language", sort=False)["tokens"].sum()
        shares = ", ".join(f"{code} {tokens / own.sum():.1%}" for code, tokens in own.items())
        lines += [f"## {name}", "", f"Width {mix.width or saes.width}, k {mix.k or saes.k}, seed {mix.seed}. Text: {shares}.", ""]
        lines += [f"    SAE.load_from_disk('{name}/layer_<n>')", ""]
    lines += ["## Held-out fit (FVU, mean over layers)", "", markdown_table(pd.DataFrame(fit_rows(fit)))]
    return "\n".join(lines).strip() + "\n"


def shared_card(config: SaesConfig, tables: Mapping[str, pd.DataFrame], sets: Sequence[str], base: str, licence: str) -> str:
    """The card of sets on the hub: front matter, what each set was trained on, its fit in each language, and the terms.

    Args:
        sets: that are shared.
        base: the base model on the hub.
        licence: of the base model, by its name on the hub.
    """
    fit = tables["fit"][tables["fit"]["sae_set"].isin(sets)]
    codes = list(dict.fromkeys(str(code).partition("_")[0] for code in fit["language"]))
    front = {"license": licence, "base_model": base, "library_name": "saelens", "language": codes, "tags": ["sparse-autoencoder", "lingact"]}
    latents = tables["latents"][tables["latents"]["sae_set"].isin(sets)]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{card(config, tables, sets, base)}",
        f"## By layer\n\n{markdown_table(pd.DataFrame(latent_rows(latents)))}",
        "A latent is dead if it fires on none of the held-out tokens of all languages together. FVU is about each language's own mean residual.",
        f"Load a set in lingact: `lingact analyze sae=own sae.measuring.release=owner/name \"sae.measuring.id='{sets[0]}/layer_{{layer}}'\"`",
        notice_of(licence) or f"The licence of {base} ({licence}) applies.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"
