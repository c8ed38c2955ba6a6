"""The memory that a run needs, of a device and of its host.

What is always there is counted exactly. What comes and goes while a batch is read is estimated from the tensors that the code holds where it holds
most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from lingact.activations.attribution_sums import NORMS, STATES
from lingact.activations.feature_stats import LAYER_SUMS
from lingact.config.jobs import AnalyzeConfig, EvalConfig, TrainConfig
from lingact.config.training import LoraAdapter, VeraAdapter
from lingact.planning.inputs import LONGEST, Inputs, Number, SaeSetSizes, Text, layers_in_loss, share_of
from lingact.planning.questions import OPTION_TOKENS, PROMPT_TOKENS

EXACT, ESTIMATE = "counted", "estimated"
ACTIVE = 100
"""Active latents of a token: a guess."""
_Measuring = Inputs[TrainConfig] | Inputs[AnalyzeConfig]
_Any = _Measuring | Inputs[EvalConfig]


@dataclass(frozen=True)
class Need:
    """Bytes for something, and how they are known."""

    what: str
    size: Number
    how: str = ESTIMATE


def total(needs: list[Need]) -> Number:
    """Bytes of all of them."""
    return sum(need.size for need in needs)


@dataclass(frozen=True)
class Memory:
    """What a run needs of a device and of its host."""

    device: list[Need]
    """All the time."""
    phases: dict[str, list[Need]]
    """On the device besides, one phase after the other."""
    host: list[Need]
    """While and after text is read."""
    sampling: list[Need] = field(default_factory=list)
    """On the host, before text is read."""
    loading: list[Need] = field(default_factory=list)
    """On the host, only while weights are on their way to a device."""

    @property
    def largest_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: total(self.phases[phase]))

    @property
    def device_peak(self) -> Number:
        """Bytes."""
        return total(self.device) + total(self.phases[self.largest_phase])

    @property
    def host_peak(self) -> Number:
        """Bytes once the weights are loaded."""
        return max(total(self.host), total(self.sampling))


def memory_of_analysis(inputs: Inputs[AnalyzeConfig]) -> Memory:
    """The memory that `workflows.observe` needs."""
    config, model, layers = inputs.config, inputs.model, inputs.layers
    parts, batch, languages = config.measures.parts, config.batch_tokens, len(config.languages.all)
    variants = 1 if config.adapter is None else 3
    sentences = inputs.text.sentences * share_of(config.corpus.splits, config.split)
    phases = {"measuring": _measuring(inputs, batch, variants, logits=config.adapter is not None or "language_model" in parts)}
    if {"spliced", "causal"} & set(parts):
        phases["intervening"] = [_logits(inputs, batch, 2 * inputs.bytes_per_number + 8), _latents(inputs, batch)]
    host = [_statistics(inputs, languages, variants, sentences)]
    if "similarity" in parts:
        kept = min(sentences, config.measures.similarity.sentences)
        host.append(Need(f"mean residuals of {kept:.0f} sentences", languages * layers * kept * model.d_model * 8, EXACT))
    if inputs.compared:
        numbers = len(NORMS) + len(STATES) * len(inputs.compared)
        host.append(_sample(inputs, layers, sentences * inputs.text.tokens * languages))
        host.append(Need(f"sums of the attribution in {languages} languages", (languages + 1) * layers * sentences * numbers * 8, EXACT))
    sampling = [_sample(inputs, layers, sentences * inputs.text.tokens * languages)] if "random_sae" in parts else []
    return Memory([_weights(inputs), *_saes(inputs)], phases, host, sampling, _loading(inputs))


def memory_of_training(inputs: Inputs[TrainConfig], training: Text) -> Memory:
    """The memory that `workflows.train` needs: for the base model's outputs, the steps, and measuring base and adapter.

    Args:
        training: the text that is trained on.
    """
    config, model, batch = inputs.config, inputs.model, inputs.config.batch_tokens
    trained = training.sentences * (config.train_corpus or config.corpus).splits.train
    judged = inputs.text.sentences * share_of(config.corpus.splits, config.split)
    reconstructions = Need("SAEs' reconstructions of all layers", batch * inputs.layers * model.d_model * 4 * 3)
    caching = [_residuals(inputs, batch, 1), reconstructions, _latents(inputs, batch)]
    predicting = [_logits(inputs, batch, 2 * inputs.bytes_per_number + 12)] if config.loss.retention.top is not None else []
    phases = {
        "caching base outputs": max(caching, predicting, key=total),
        "a training step": _step(inputs, training),
        "measuring": _measuring(inputs, batch, 3, logits=True),
    }
    host = [_statistics(inputs, len(config.languages.all), 3, judged), *_cached_outputs(inputs, trained, training.tokens)]
    tokens = trained * training.tokens * (len(config.lang) + 1)
    sampling = [_sample(inputs, layers_in_loss(inputs)[0], tokens)] if config.loss.control == "random_features" else []
    return Memory([_weights(inputs), *_saes(inputs), _adapter(inputs)], phases, host, sampling, _loading(inputs))


def memory_of_evaluation(inputs: Inputs[EvalConfig]) -> Memory:
    """The memory that `workflows.evaluate` needs for questions and text."""
    config = inputs.config
    batch = config.tasks.batch_size if config.tasks.batch_size != "auto" else 1  # auto takes what there is
    longest = min(config.model.context, LONGEST * (PROMPT_TOKENS + OPTION_TOKENS))
    kept = Need("keys and values of the prompts", 2 * batch * longest * inputs.model.layers * inputs.model.d_model * inputs.bytes_per_number)
    phases = {"questions": [kept, _logits(inputs, batch * OPTION_TOKENS, inputs.bytes_per_number + 8)]}
    if config.text_split is not None:
        phases["text"] = [_logits(inputs, config.batch_tokens, 2 * inputs.bytes_per_number + 8)]
    return Memory([_weights(inputs), *_saes(inputs)], phases, [], loading=_loading(inputs))


# --- the model and its SAEs -------------------------------------------------------------------------------------------------------------------------


def _weights(inputs: Inputs) -> Need:
    count = inputs.model.weights
    what = f"model, {count / 1e6:,.0f} M weights in {inputs.config.model.dtype}"
    return Need(what, count * inputs.bytes_per_number, f"{EXACT} from {inputs.how}")


def _saes(inputs: _Any) -> list[Need]:
    """Encoder, decoder, biases, thresholds and decoder norms, in float32."""
    d = inputs.model.d_model
    return [
        Need(
            f"SAEs, {sae_set.name}: {inputs.layers} x {sae_set.width:,} latents in float32",
            4 * inputs.layers * (2 * d * sae_set.width + 3 * sae_set.width + d),
            f"{EXACT}; width from {sae_set.how}",
        )
        for sae_set in (*inputs.sae_sets, *inputs.compared)
    ]


def _loading(inputs: _Any) -> list[Need]:
    return [_weights(inputs), *sorted(_saes(inputs), key=lambda need: need.size)[-1:]]


# --- reading text -----------------------------------------------------------------------------------------------------------------------------------


def _block(inputs: Inputs, tokens: Number) -> Need:
    """While a block is computed without gradient: its widest layers, and attention scores."""
    model, number = inputs.model, inputs.bytes_per_number
    scores = model.heads * inputs.longest * (3 * number + 4) if inputs.config.model.attention == "eager" else 0
    return Need("a block of the model", tokens * (number * (3 * model.d_mlp + 4 * model.d_model) + 8 * model.d_model + scores))


def _logits(inputs: Inputs, tokens: Number, each: Number) -> Need:
    """Logits of the tokens that are predicted at once, with what is computed from them.

    Args:
        each: bytes for a logit.
    """
    from lingact.models.next_tokens import LOGITS_AT_ONCE  # imports transformers, as the sizes of the model have done

    count = min(tokens, max(1, LOGITS_AT_ONCE // inputs.model.vocabulary))
    return Need(f"logits of {count:,.0f} tokens x {inputs.model.vocabulary:,}", count * inputs.model.vocabulary * each)


def _latents(inputs: _Measuring, tokens: Number) -> Need:
    """One layer at a time: pre-activations, ReLU, their product with the threshold, the folded ones, and what sorting and counting needs."""
    widest = max(sae_set.width for sae_set in (*inputs.sae_sets, *inputs.compared))
    return Need(f"latents of {tokens:,.0f} tokens, a layer at a time", tokens * widest * 5 * 4)


def _kept_latents(inputs: Inputs[TrainConfig], places: Number) -> Need:
    """What the gradient needs of each token and layer: the active latents, for the gap and the fit term; of SAEs without thresholds all latents."""
    sae_set = inputs.sae_sets[0]
    each = sae_set.width * 20 if sae_set.dense or inputs.config.loss.gap.objective == "hinge" else min(ACTIVE, sae_set.width) * 2 * 40
    return Need(f"latents kept for the gradient, at {places:,.0f} places", places * each)


def _residuals(inputs: _Measuring, tokens: Number, variants: int) -> Need:
    """In the model's precision and in float32, of every layer."""
    kept = min(variants, 2) * inputs.bytes_per_number + variants * 4
    return Need(f"residuals of {inputs.layers} layers", tokens * inputs.layers * inputs.model.d_model * kept, EXACT)


def _measuring(inputs: _Measuring, tokens: Number, variants: int, *, logits: bool) -> list[Need]:
    each = 4 * inputs.bytes_per_number + 20 if variants > 1 else 2 * inputs.bytes_per_number + 8
    in_turn = [_latents(inputs, tokens), _block(inputs, tokens), *([_logits(inputs, tokens, each)] if logits else [])]
    return [_residuals(inputs, tokens, variants), max(in_turn, key=lambda need: need.size)]


def _statistics(inputs: _Measuring, languages: int, variants: int, sentences: Number) -> Need:
    """Sums in int64 and float64: six for a latent, `LAYER_SUMS` for a sentence and layer. One language's are copied when they are saved."""
    by_sentence = len(LAYER_SUMS) * 8 * sentences
    each = [_seen(sae_set, variants) * (6 * 8 * sae_set.width + by_sentence + 8 * inputs.model.d_model) for sae_set in inputs.sae_sets]
    return Need(f"statistics of {languages} languages", (languages + 1) * inputs.layers * sum(each), EXACT)


def _seen(sae_set: SaeSetSizes, variants: int) -> int:
    return 1 if sae_set.random else variants


def _sample(inputs: _Measuring, layers: int, tokens: Number) -> Need:
    """Residuals in float32 on which random SAEs are made to fire as often as the trained ones, or from which an attribution takes their mean."""
    from lingact.activations.random_saes import SAMPLE_TOKENS  # imports sae-lens, which takes seconds, as the run itself does

    kept = min(SAMPLE_TOKENS, tokens)
    return Need(f"residuals of {kept:,.0f} sampled tokens", layers * kept * inputs.model.d_model * 4)


# --- training ---------------------------------------------------------------------------------------------------------------------------------------


def _adapter(inputs: Inputs[TrainConfig]) -> Need:
    """Weights, gradients and AdamW's two moments, in float32."""
    peft = inputs.config.peft
    blocks = inputs.model.layers if peft.layers == "all" else len(peft.layers)
    count = blocks * adapter_weights(inputs)
    how = f"{EXACT} for all linear modules" if isinstance(peft, LoraAdapter) and peft.targets == "all" else ESTIMATE
    return Need(f"adapter, {count / 1e6:.1f} M weights, and AdamW", count * 16, how)


def adapter_weights(inputs: Inputs[TrainConfig]) -> int:
    """Trained weights of a block's adapter: exact for LoRA and DoRA on all linear modules, approximate for the other kinds."""
    peft, modules = inputs.config.peft, inputs.model.linear
    if isinstance(peft, LoraAdapter):
        return sum(peft.r * (i + o) + (o if peft.use_dora else 0) for i, o in modules)
    if isinstance(peft, VeraAdapter):
        return sum(peft.r + o for _, o in modules)
    return sum(2 * getattr(peft, "r", 1) * (i + o) for i, o in modules)


def _step(inputs: Inputs[TrainConfig], text: Text) -> list[Need]:
    """What one step keeps for the gradient, and what the backward pass needs where it needs most."""
    config, model, number = inputs.config, inputs.model, _bytes_in_training(inputs.config)
    trainer, retention = config.trainer, config.loss.retention
    sentences = -(-trainer.sentences // (trainer.devices * trainer.nodes))
    longest = min(config.model.context, LONGEST * text.tokens)
    part = min(trainer.micro_batch or sentences, sentences)
    read = part * longest
    """Padded tokens of one language that are read at once."""
    languages = 1 if trainer.micro_batch else len(config.lang) + 1
    target = 1 if trainer.micro_batch else len(config.lang)
    layers, products = layers_in_loss(inputs)
    needs = [
        Need(f"activations of {model.layers} blocks, {languages * read:,.0f} tokens", languages * read * _kept_of_blocks(inputs, longest)),
        Need(f"residuals of {layers} layers in the loss", languages * read * layers * model.d_model * 4 * 4),
    ]
    if products:
        needs += [_latents(inputs, target * read), _kept_latents(inputs, target * read * layers)]
    with_logits = bool(retention.kl or retention.lm or retention.limit) + len(config.lang) * bool(retention.target_kl or config.loss.target_lm)
    if with_logits:
        needs.append(_logits(inputs, read * config.loss.predicted_share, 2 * number + 20))
    return needs


def _kept_of_blocks(inputs: Inputs[TrainConfig], longest: Number) -> Number:
    """Bytes for one token."""
    config, model, number = inputs.config, inputs.model, _bytes_in_training(inputs.config)
    numbers = sum(i + o for i, o in model.linear) + 2 * model.rotated + model.d_mlp
    scores = model.heads * longest * (3 * number + 4) if config.model.attention == "eager" else 0
    block = number * numbers + 8 * 4 * model.d_model + scores
    return number * model.d_model * model.layers + block if config.trainer.activation_checkpointing else block * model.layers


def _bytes_in_training(config: TrainConfig) -> int:
    return 4 if config.trainer.precision == "32-true" and config.model.dtype == "float32" else 2


def _cached_outputs(inputs: Inputs[TrainConfig], sentences: Number, tokens: Number) -> Iterator[Need]:
    """What is kept of the base model on the training sentences, in host memory."""
    retention, languages = inputs.config.loss.retention, len(inputs.config.lang) + 1
    rows = sentences * tokens * languages
    if retention.top is not None:
        yield Need(f"next tokens of the base model, the {retention.top} likeliest", rows * (8 * retention.top + 4))
    sums = inputs.layers * (rows * 4 + languages * sentences * (inputs.model.d_model + 4) * 4)
    if inputs.config.loss.gap.objective == "profile":
        sums += inputs.layers * sentences * inputs.sae_sets[0].width * 4
    yield Need("norms, means and fit of the base model", sums)
