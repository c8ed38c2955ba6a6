"""The passes over text that a run makes, and their floating-point operations."""

from collections.abc import Iterator
from dataclasses import dataclass

from lingact.activations.attribution_sums import STATES
from lingact.config.jobs import AnalyzeConfig, EvalConfig, TrainConfig
from lingact.planning.inputs import Inputs, Number, Text, layers_in_loss, share_of
from lingact.planning.questions import Questions

_Measuring = Inputs[TrainConfig] | Inputs[AnalyzeConfig]


@dataclass(frozen=True)
class Pass:
    """One kind of pass over text."""

    what: str
    tokens: Number
    model: Number
    """Floating-point operations in the model's precision."""
    single: Number = 0.0
    """Floating-point operations in float32: those of the SAEs."""


def passes_of_analysis(inputs: Inputs[AnalyzeConfig]) -> list[Pass]:
    """The passes that `workflows.observe` makes."""
    config = inputs.config
    variants = 1 if config.adapter is None else 3
    logits = config.adapter is not None or "language_model" in config.measures.parts
    sentences = inputs.text.sentences * share_of(config.corpus.splits, config.split)
    tokens = sentences * inputs.text.tokens * len(config.languages.all) / config.shard[1]
    measuring = _pass(inputs, "measuring", tokens, passes=2 if variants > 1 else 1, variants=variants, logits=logits)
    return [measuring, *_further_passes(inputs, tokens, sentences)]


def _further_passes(inputs: Inputs[AnalyzeConfig], tokens: Number, sentences: Number) -> Iterator[Pass]:
    """The passes of their own that `measures.parts` asks for."""
    config, measures, per_sentence = inputs.config, inputs.config.measures, inputs.text.tokens
    parts, codes, models = measures.parts, len(config.languages.all), 1 if config.adapter is None else 2
    if "by_reference" in parts:
        yield _pass(inputs, "reference statistics", sentences / 2 * per_sentence)
        yield Pass("by the reference statistics", tokens, 0, _work_of_saes(inputs, tokens, 1) / 2)
    if "features" in parts:
        yield _pass(inputs, "random tokens and strongest contexts", measures.features.random_tokens + tokens)
    if "spliced" in parts:
        read = min(measures.spliced.sentences, sentences) * per_sentence * codes
        times = models * (1 + inputs.layers * (1 + sum(not sae_set.random for sae_set in inputs.sae_sets)))
        yield Pass("splicing", read * times, inputs.forward(read * times, predicted=1.0), _work_of_saes(inputs, read, 1))
    if config.attribution:
        # Norms first, then an encoding by each set in each state of the residuals.
        encoding = inputs.layers * 2 * inputs.model.d_model * sum(sae_set.width for sae_set in inputs.compared)
        yield Pass("attribution", 2 * tokens, inputs.forward(2 * tokens), len(STATES) * tokens * encoding)
    if "causal" in parts:
        read = min(measures.causal.sentences, sentences / 2) * per_sentence * codes
        each = codes if measures.causal.features == "language_specific" else 1
        arms = models * len(measures.causal.doses) * (2 + measures.causal.draws) * each
        yield Pass("intervening", read * arms, inputs.forward(read * arms, predicted=1.0), _work_of_saes(inputs, read * arms, 1) / 2)


def passes_of_training(inputs: Inputs[TrainConfig], training: Text) -> list[Pass]:
    """The passes that `workflows.train` makes: for the base model's outputs, the steps, and measuring base and adapter on two splits.

    Args:
        training: the text that is trained on.
    """
    config, text, splits = inputs.config, inputs.text, inputs.config.corpus.splits
    trained, judged = training.sentences * (config.train_corpus or config.corpus).splits.train, text.sentences * share_of(splits, config.split)
    languages = len(config.lang) + 1
    read = trained * training.tokens * languages
    stepped = config.trainer.steps * config.trainer.sentences * training.tokens * languages
    # The base weights are frozen: the backward pass costs as much as the forward pass, not twice as much. Some settings repeat the forward pass.
    times = 3 if config.trainer.micro_batch is not None or config.trainer.activation_checkpointing else 2
    measured = (judged * len(config.languages.all) + text.sentences * splits.dev * languages) * text.tokens
    return [
        Pass("caching base outputs", 2 * read, 2 * inputs.forward(read, predicted=1.0), _work_of_saes(inputs, read, 1)),
        Pass("training", stepped, times * inputs.forward(stepped, predicted=config.loss.predicted_share), _work_of_loss(inputs, stepped)),
        _pass(inputs, "measuring base and adapter", measured, passes=2, variants=3, logits=True),
    ]


def passes_of_evaluation(inputs: Inputs[EvalConfig], questions: Questions) -> list[Pass]:
    """The passes that `workflows.evaluate` makes: over questions and text, by the base model and each adapter."""
    config = inputs.config
    codes, models = len(config.languages.all), 1 + len(config.adapter)
    read, scored = models * (questions.prompts + questions.further), models * questions.scored
    watched = _work_of_saes(inputs, questions.prompts, models) / 2  # encoders only
    passes = [Pass("questions", read, inputs.forward(read, predicted=scored / max(1, read)), watched)]
    if config.text_split is not None:
        read = inputs.text.sentences * share_of(config.corpus.splits, config.text_split) * inputs.text.tokens * codes * models
        passes.append(Pass("text", read, inputs.forward(read, predicted=1.0)))
    return passes


def _pass(inputs: _Measuring, what: str, tokens: Number, *, passes: int = 1, variants: int = 1, logits: bool = False) -> Pass:
    return Pass(what, tokens, passes * inputs.forward(tokens, predicted=float(logits)), _work_of_saes(inputs, tokens, variants))


def _work_of_saes(inputs: _Measuring | Inputs[EvalConfig], tokens: Number, variants: int) -> Number:
    """Encoder and decoder. Random SAEs read the base model only."""
    each = [(1 if sae_set.random else variants) * inputs.layers * 4 * inputs.model.d_model * sae_set.width for sae_set in inputs.sae_sets]
    return tokens * sum(each)


def _work_of_loss(inputs: Inputs[TrainConfig], tokens: Number) -> Number:
    """The measuring SAEs on the targets' tokens. In parts the forward pass is made twice."""
    layers, products = layers_in_loss(inputs)
    targets = tokens * len(inputs.config.lang) / (len(inputs.config.lang) + 1)
    times = 2 if inputs.config.trainer.micro_batch is not None else 1
    return targets * layers * products * times * 2 * inputs.model.d_model * inputs.sae_sets[0].width
