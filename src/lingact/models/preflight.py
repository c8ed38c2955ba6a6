"""Checks before a run: whether a job's configuration goes together with its model's config.json, its SAEs' settings and this machine.

Nothing is downloaded and no weights are read. No heavy library is imported until everything else is right, so that nearly every mistake ends within
two seconds and before there is a run folder. What the modules of an adapter are is known only to the model's real class: that is checked last. The
functions that check here check again once everything is loaded.
"""

from collections.abc import Callable
from typing import TypeVar

from lingact.config.choices import check_causal, check_ranges, chosen_layers, loss_layers, substitutes
from lingact.config.jobs import AnalyzeConfig, EvalConfig, JobConfig, SaesConfig, TrainConfig
from lingact.config.model import SaeConfig
from lingact.errors import UserError
from lingact.models.adapter_places import check_blocks
from lingact.models.adapter_sources import expand_adapters, find_adapter, lies_elsewhere
from lingact.models.devices import check_devices
from lingact.models.model_files import Facts, check_attention, check_context, check_folder, facts_of
from lingact.models.sae_files import check_saes, check_set_in, check_thresholds, read_settings
from lingact.runtime.program import program

T = TypeVar("T")


class _Findings:
    """Problems, a line each, none twice."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def of(self, check: Callable[[], T]) -> T | None:
        """What the check returns; None where it finds a problem."""
        try:
            return check()
        except UserError as error:
            self.lines.extend(line for line in str(error).splitlines() if line not in self.lines)
        return None


def problems(config: JobConfig, *, here: bool) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        here: the job runs on this machine, so that its devices are known.
    """
    found = _Findings()
    if isinstance(config, AnalyzeConfig):
        found.of(lambda: check_analysis(config))
        if config.stats or config.compare:
            return found.lines  # no model is loaded
    if here:
        found.of(lambda: check_devices(config))
    for adapter in found.of(lambda: _adapters(config)) or ():
        if not lies_elsewhere(adapter):
            found.of(lambda adapter=adapter: find_adapter(adapter))
    found.of(lambda: check_folder(config.model))
    facts = found.of(lambda: facts_of(config.model)) or Facts()
    found.of(lambda: check_context(config.model, facts))
    found.of(lambda: check_attention(config.model, facts))
    if isinstance(config, SaesConfig):
        if facts.layers is not None:
            blocks = facts.layers
            found.of(lambda: chosen_layers(config.saes, blocks, "saes.layers"))
        return found.lines
    if config.sae is not None:
        layers = _check_saes(config.sae, facts, found)
        _check_attributed(config, layers, facts, found)
        if layers is not None and not isinstance(config, EvalConfig):
            found.of(lambda: check_ranges(layers, config.statistics))
            found.of(lambda: _check_layers_named(config, layers))
    if isinstance(config, TrainConfig):
        found.of(lambda: substitutes(config))
        if facts.layers is not None:
            blocks = facts.layers
            found.of(lambda: check_blocks(config.peft, blocks))
        if not found.lines:
            found.of(lambda: _check_modules(config))
    return found.lines


def _adapters(config: JobConfig) -> list[str]:
    """The adapters to load, those of a sweep one by one."""
    if isinstance(config, EvalConfig):
        return expand_adapters(config.adapter)
    return [config.adapter] if isinstance(config, AnalyzeConfig | SaesConfig) and config.adapter is not None else []


def _check_saes(config: SaeConfig, facts: Facts, found: _Findings) -> tuple[int, ...] | None:
    """Check the SAEs of the measured layers; None where these are not known."""
    if facts.layers is not None:
        blocks = facts.layers
        layers = found.of(lambda: chosen_layers(config, blocks))
    else:
        layers = None if config.layers == "all" else tuple(sorted(config.layers))
    if layers is not None:
        for spec in (config.measuring, config.heldout):
            if spec is not None:
                found.of(lambda spec=spec: check_saes(spec, layers, facts.d_model))
    return layers


def _check_attributed(config: JobConfig, layers: tuple[int, ...] | None, facts: Facts, found: _Findings) -> None:
    """Check the SAEs between which a difference of activation is divided."""
    for folder in (folder for mix in config.attribution for folder in mix) if isinstance(config, AnalyzeConfig) else ():
        found.of(lambda folder=folder: check_set_in(folder, layers, facts.d_model, "attribution"))


def _check_layers_named(config: TrainConfig | AnalyzeConfig, layers: tuple[int, ...]) -> None:
    """Refuse layers of loss or interventions that are not measured, and latents that the SAEs do not have."""
    measuring = config.sae.measuring
    if isinstance(config, TrainConfig):
        chosen = loss_layers(config, layers)
        if config.loss.gap.gradient == "straight_through" and config.loss.control != "random_features":
            check_thresholds(measuring, chosen)
        return
    widths = {layer: read_settings(measuring, measuring.id_of(layer)).get("d_sae") for layer in layers}
    check_causal(config, layers, {layer: width for layer, width in widths.items() if width is not None})


def _check_modules(config: TrainConfig) -> None:
    """Refuse an adapter that the model's modules do not allow. The job imports what this imports, right after."""
    from lingact.models.sizes import check_places

    check_places(config.model, config.peft)


def check_analysis(config: AnalyzeConfig) -> None:
    """Refuse an analysis of nothing, options that it would not use, and runs without statistics.

    Raises:
        UserError: with what to leave out or to name.
    """
    if len(config.languages.all) == 1:
        raise UserError(
            f"languages: there is nothing to compare '{config.languages.reference}' with; name languages in languages.high or languages.low"
        )
    not_used = (("adapter", config.adapter), ("scores", config.scores if config.compare else None), ("attribution", config.attribution))
    ignored = [name for name, given in not_used if given]
    if (config.compare or config.stats) and ignored:
        raise UserError(f"{', '.join(ignored)}: not used with {'compare' if config.compare else 'stats'}=, which needs no model; leave it out")
    # The statistics of a sweep are in its jobs' folders, which are looked up when they are compared.
    for folder in (*config.stats, *(run for run in config.compare if not (run / ".jobs").is_dir())):
        if not (folder / "stats" / "index.json").is_file():
            name = "compare" if config.compare else "stats"
            runs = f"{program('analyze')} or {program('train')}"
            raise UserError(f"{name}: '{folder}' has no statistics (no stats/index.json); name a run folder of {runs}")
