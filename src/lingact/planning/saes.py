"""Memory and passes of training SAEs."""

from lingact.config.jobs import SaesConfig
from lingact.config.saes import FilesText
from lingact.models.sizes import ModelSizes
from lingact.planning.memory import EXACT, Memory, Need
from lingact.planning.work import Pass

_PARAMETERS = 2.0
"""Numbers of an SAE for each weight of its encoder."""


def layers_of(config: SaesConfig, model: ModelSizes) -> int:
    """Number of layers that get SAEs."""
    return model.layers if config.saes.layers == "all" else len(config.saes.layers)


def memory_of_saes(config: SaesConfig, model: ModelSizes, how: str) -> Memory:
    """The memory that `workflows.saes` needs."""
    saes, layers, number = config.saes, layers_of(config, model), 4 if config.model.dtype == "float32" else 2
    widths = _widths(config)
    weights = _PARAMETERS * model.d_model * sum(widths) * layers / config.devices
    always = [
        Need(f"model, {model.weights / 1e6:,.0f} M weights in {config.model.dtype}", model.weights * number, f"{EXACT} from {how}"),
        Need(f"{-(-len(widths) * layers // config.devices)} SAEs with gradients and Adam's two moments", 4 * 4 * weights),
        Need("buffers", 2 * len(widths) * layers * saes.buffer_tokens * model.d_model * 4 / config.devices),
    ]
    step = Need("latents of a step, one SAE at a time", saes.batch_tokens * max(widths) * 4 * 6)
    read = Need("residuals of a pass, with a block of the model", config.batch_tokens * model.d_model * 4 * (2 * layers + 8))
    checkpoint = Need("a checkpoint while it is written", 2 * (3 * 4 * weights + len(widths) * layers * saes.buffer_tokens * model.d_model * 4))
    return Memory(always, {"training": [step, read]}, [checkpoint])


def passes_of_saes(config: SaesConfig, model: ModelSizes) -> list[Pass]:
    """The passes that `workflows.saes` makes: over the text of all sets together, and over held-out text."""
    saes, layers, sets = config.saes, layers_of(config, model), config.seeded_sets
    most: dict[str, float] = {}
    for mix in sets.values():
        for code, share in mix.mix.items() if isinstance(mix.mix, dict) else [("all", 1.0)]:
            most[code] = max(most.get(code, 0.0), share)
    times = 1 if config.adapter is None else 2
    read = times * saes.tokens * min(len(sets), sum(most.values()))
    width = sum(_widths(config))
    each = 2 * model.d_model * width * layers  # a product of the encoder or of the decoder
    judged = config.quality.tokens
    # Every language's tokens once as they are, and at each layer with zeros and with the reconstruction of each set; with logits.
    conditions = times + layers * (times + len(_widths(config)))
    spliced = config.quality.spliced_tokens * _languages(config) * conditions
    return [
        Pass("training", read, read * model.forward(float(saes.context)), saes.tokens * 6 * each),
        Pass("judging", judged, times * judged * model.forward(float(saes.context)), times * judged * 2 * each),
        Pass("splicing", spliced, spliced * (model.forward(float(saes.context)) + model.logit_work)),
    ]


def _languages(config: SaesConfig) -> int:
    """The languages of the text, as far as the configuration names them."""
    named = {code for mix in config.seeded_sets.values() if isinstance(mix.mix, dict) for code in mix.mix}
    return max(1, len(named if isinstance(config.text, FilesText) else config.text.languages))


def _widths(config: SaesConfig) -> list[int]:
    """Latents of each set that is trained: with an adapter each set is, on the base model and on the adapted one."""
    return [mix.width or config.saes.width for mix in config.seeded_sets.values() for _ in range(1 if config.adapter is None else 2)]
