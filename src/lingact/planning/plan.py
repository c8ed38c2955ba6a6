"""The plan of a run: its memory and its passes; and which overrides would need less memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from lingact.config.jobs import AnalyzeConfig, EvalConfig, JobConfig, SaesConfig, TrainConfig
from lingact.models.sizes import sizes_of
from lingact.planning.hardware import Hardware
from lingact.planning.inputs import inputs_of, text_of
from lingact.planning.memory import Memory, memory_of_analysis, memory_of_evaluation, memory_of_training
from lingact.planning.questions import questions_of
from lingact.planning.saes import memory_of_saes, passes_of_saes
from lingact.planning.work import Pass, passes_of_analysis, passes_of_evaluation, passes_of_training

GB = 1e9
Value = str | int | bool | tuple[int, ...] | None
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    memory: Memory
    passes: list[Pass]
    text: str
    """How the number of tokens is known."""


def make_plan(config: JobConfig) -> Plan | None:
    """The plan of a run; None where the sizes of the model or the width of an SAE are not known without downloading them.

    Raises:
        UserError: a file of the model, the SAEs or the corpus is damaged.
    """
    if isinstance(config, EvalConfig):
        return _plan_of_evaluation(config)
    if isinstance(config, SaesConfig):
        return _plan_of_saes(config)
    return _plan_of_training(config) if isinstance(config, TrainConfig) else _plan_of_analysis(config)


def _plan_of_analysis(config: AnalyzeConfig) -> Plan | None:
    inputs = inputs_of(config)
    return None if inputs is None else Plan(memory_of_analysis(inputs), passes_of_analysis(inputs), inputs.text.how)


def _plan_of_saes(config: SaesConfig) -> Plan | None:
    found = sizes_of(config.model)
    if found is None:
        return None
    model, how = found
    text = f"{config.saes.tokens:,} of each set, {config.quality.tokens:,} held out"
    return Plan(memory_of_saes(config, model, how), passes_of_saes(config, model), text)


def _plan_of_training(config: TrainConfig) -> Plan | None:
    inputs = inputs_of(config)
    if inputs is None:
        return None
    training = text_of(config.train_corpus or config.corpus, (*config.lang, config.languages.reference), inputs.counter)
    how = inputs.text.how if config.train_corpus is None else f"{inputs.text.how}; to train on: {training.how}"
    return Plan(memory_of_training(inputs, training), passes_of_training(inputs, training), how)


def _plan_of_evaluation(config: EvalConfig) -> Plan | None:
    inputs = inputs_of(config)
    if inputs is None:
        return None
    questions = questions_of(config, inputs.counter)
    return Plan(memory_of_evaluation(inputs), passes_of_evaluation(inputs, questions), f"{inputs.text.how}; {questions.how}")


# --- what would need less ---------------------------------------------------------------------------------------------------------------------------


def advice(config: JobConfig, hardware: Hardware) -> list[str]:
    """Overrides that need less, each with the peak that is left: those that suffice alone first, then all together.

    Args:
        config: a job that has a plan.
    """
    lacking = hardware.lacks(_memory(config))
    tried: list[tuple[bool, float, str]] = []
    together = config
    for key, value in _smaller(config):
        changed, together = _with(config, key, value), _with(together, key, value)
        memory = _memory(changed)
        needed = hardware.needed(memory)
        saved = sum(lacking[what][0] - needed[what][0] for what in lacking)
        if saved > 0.02 * sum(size for size, _ in lacking.values()):
            peaks = ", ".join(f"{needed[what][0] / GB:.1f} GB" for what in lacking)
            tried.append((bool(hardware.lacks(memory)), -saved, f"{key}={_as_override(value)} ({peaks})"))
    lines = [text for _, _, text in sorted(tried)]
    whole = hardware.needed(_memory(together))
    if len(lines) > 1:
        lines.append(f"all of these ({', '.join(f'{whole[what][0] / GB:.1f} GB' for what in lacking)})")
    return lines


def _memory(config: JobConfig) -> Memory:
    plan = make_plan(config)
    assert plan is not None
    return plan.memory


def _smaller(config: JobConfig) -> Iterator[tuple[str, Value]]:
    """What a user might give up."""
    if config.batch_tokens > 512:
        yield "batch_tokens", max(512, config.batch_tokens // 4)
    if config.model.dtype == "float32":
        yield "model.dtype", "bfloat16"
    if isinstance(config, EvalConfig):
        if config.tasks.batch_size not in ("auto", 1):
            yield "tasks.batch_size", 1
        return
    found = sizes_of(config.model)
    blocks = tuple(range(found[0].layers if found else 0))
    if isinstance(config, SaesConfig):
        yield from _smaller_saes(config, blocks)
        return
    if isinstance(config, TrainConfig):
        if config.trainer.micro_batch != 1:
            yield "trainer.micro_batch", 1
        if not config.trainer.activation_checkpointing:
            yield "trainer.activation_checkpointing", True
    elif "random_sae" in config.measures.parts and config.measures.random_sae.draws > 1:
        yield "measures.random_sae.draws", 1
    if isinstance(config, AnalyzeConfig) and config.attribution:
        yield "attribution", ()
    if config.sae.heldout is not None:
        yield "sae.heldout", None
    layers = blocks if config.sae.layers == "all" else config.sae.layers
    if len(layers) > 4:
        yield "sae.layers", layers[:: max(2, len(layers) // 6)]


def _smaller_saes(config: SaesConfig, blocks: tuple[int, ...]) -> Iterator[tuple[str, Value]]:
    if config.saes.buffer_tokens > 4 * config.saes.batch_tokens:
        yield "saes.buffer_tokens", 4 * config.saes.batch_tokens
    yield "saes.width", max(2 * config.saes.k, config.saes.width // 4)
    layers = blocks if config.saes.layers == "all" else config.saes.layers
    if len(layers) > 4:
        yield "saes.layers", layers[:: max(2, len(layers) // 6)]


def _with(node: M, key: str, value: Value) -> M:
    """The configuration with one value changed."""
    head, _, rest = key.partition(".")
    return node.model_copy(update={head: _with(getattr(node, head), rest, value) if rest else value})


def _as_override(value: Value) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower()
