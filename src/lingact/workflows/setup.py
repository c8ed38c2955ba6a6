"""Set up what analysis and training share: the model, the SAEs, the corpus, and their identities."""

from dataclasses import dataclass
from typing import Any

from lingact.config.choices import chosen_layers, set_names
from lingact.config.jobs import AnalyzeConfig, TrainConfig
from lingact.config.model import SaeConfig, sae_set_in
from lingact.data.corpus import ParallelCorpus
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionaries, load_dictionaries
from lingact.runtime.tracking import Run

MEASURING, HELDOUT = "measuring", "heldout"


@dataclass(frozen=True)
class Components:
    """A loaded model, its sets of SAEs by name, and the aligned corpus."""

    lm: LanguageModel
    sae_sets: dict[str, Dictionaries]
    layers: tuple[int, ...]
    corpus: ParallelCorpus
    identity: dict[str, str]
    """Everything that statistics depend on, such as hashes of model, SAEs and corpus."""


def set_up(run: Run, config: AnalyzeConfig | TrainConfig, corpus: ParallelCorpus) -> Components:
    """Load the model and the SAEs once, and record them and the corpus in the manifest.

    Raises:
        UserError: something is missing or does not fit.
    """
    lm = load_model(config.model, config.device)
    sae_sets, saes = load_sae_sets(config.sae, lm)
    run.identify(model=lm.identity, sae=saes, corpus=corpus.identity)
    identity = {"model": lm.identity["sha256"], "corpus": corpus.sha256, "context": str(config.model.context), "masking": "special tokens out"}
    identity |= {f"sae/{sae_set}": found["sha256"] for sae_set, found in saes.items()}
    return Components(lm, sae_sets, tuple(sae_sets[MEASURING]), corpus, identity)


def load_sae_sets(config: SaeConfig, lm: LanguageModel) -> tuple[dict[str, Dictionaries], dict[str, dict[str, Any]]]:
    """The sets of SAEs by name, and what the manifest says of them.

    Raises:
        UserError: an SAE is missing or does not fit the model.
    """
    layers = chosen_layers(config, len(lm.blocks))
    sae_sets, saes = {}, {}
    for sae_set, spec in ((MEASURING, config.measuring), (HELDOUT, config.heldout)):
        if spec is not None:
            sae_sets[sae_set], saes[sae_set] = load_dictionaries(spec, layers, lm)
    return sae_sets, saes


@dataclass(frozen=True)
class ComparedSet:
    """A set of SAEs that `attribution` names."""

    mix: int
    """0 for the first mix, 1 for the second."""
    dictionaries: Dictionaries
    sha256: str


def compared_sets(run: Run, config: AnalyzeConfig, components: Components) -> dict[str, ComparedSet]:
    """The sets of SAEs that `attribution` names, of the measured layers, by name; recorded in the manifest. Empty without attribution.

    They are loaded before anything is measured, so that one that does not fit is refused at once.

    Raises:
        UserError: an SAE is missing or does not fit the model.
    """
    if not config.attribution:
        return {}
    names, found, identities = set_names(config.attribution), {}, {}
    for mix, folders in enumerate(config.attribution):
        for folder in folders:
            dictionaries, identity = load_dictionaries(sae_set_in(folder), components.layers, components.lm)
            found[names[folder]] = ComparedSet(mix, dictionaries, identity["sha256"])
            identities[names[folder]] = identity
    run.identify(attribution=identities)
    return found
