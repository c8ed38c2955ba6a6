"""Before a run: what memory and time it takes, from shapes alone, and whether this machine has them.

What is always there is counted exactly. What comes and goes while a batch is read is estimated from the tensors that the code holds at its widest
place. Numbers of tokens are guesses unless the text lies here. Nothing is downloaded, and no weights are read.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lingact.config.data import CorpusConfig, FilesCorpus, HubCorpus
from lingact.config.jobs import AnalyzeConfig, EvalConfig, TrainConfig
from lingact.config.model import ModelConfig, Shape
from lingact.config.training import LoraAdapter, VeraAdapter
from lingact.data.sources import load_corpus
from lingact.errors import UserError
from lingact.models.shapes import Number, block_work, linear_modules, logit_work, shape_of, weights, width_of
from lingact.runtime.terminal import note, show

Config = TrainConfig | AnalyzeConfig | EvalConfig
GB = 1e9
TINY = 100e6
"""Bytes of weights below which a run begins without a plan."""
EXACT, ESTIMATE = "counted", "estimated"
_LIBRARIES = 0.8e9
"""Bytes of Python and the libraries, as measured."""
_CUDA = 0.6e9
"""Bytes that CUDA takes for itself on a device: a guess."""
_BYTES_PER_TOKEN = {"gpt2": 2.0, "gpt_neox": 2.0}
_BYTES_PER_TOKEN_ELSEWHERE = 4.0
"""Of UTF-8 text over several scripts: a guess. Vocabularies of the byte-level models were made for English."""
_BYTES_PER_SENTENCE = 200.0
"""Of text that is not here, mean over scripts: a guess."""
_SENTENCES = 1000
_LONGEST = 2.0
"""The longest sentence of a batch over the mean one: a guess."""
_ITEMS, _OPTIONS, _TOKENS_PER_OPTION = 1000, 4, 100
"""Of a benchmark in one language: guesses."""
_UTILISATION = {"cuda": 0.35, "cpu": 0.5}
"""Share of the speed of a large matrix product that whole passes reach: guesses."""


# --- what a plan is --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Bytes for something, and how they are known."""

    what: str
    size: Number
    how: str = ESTIMATE


@dataclass(frozen=True)
class Pass:
    """One kind of pass over text."""

    what: str
    tokens: Number
    model: Number
    """Floating-point operations in the model's precision."""
    single: Number = 0.0
    """In float32: SAEs."""


@dataclass(frozen=True)
class Plan:
    """What a run takes of a device and of its host."""

    device: list[Need]
    """All the time."""
    phases: dict[str, list[Need]]
    """Beside that, in turn."""
    host: list[Need]
    work: list[Pass]
    text: str
    """How the number of tokens is known."""
    saved: list[Need] = field(default_factory=list)
    """Of the host, only while weights are on their way to a device."""

    @property
    def widest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: _sum(self.phases[phase]))

    @property
    def device_peak(self) -> Number:
        """Bytes."""
        return _sum(self.device) + _sum(self.phases[self.widest])


def _sum(needs: list[Need]) -> Number:
    return sum(need.size for need in needs)


@dataclass(frozen=True)
class Hardware:
    """The device that a run would use, and its host."""

    name: str
    kind: str
    """cpu or cuda."""
    memory: Number
    """Bytes of the device; on a CPU those of the host."""
    host: Number
    """Bytes of memory of the machine, or of what a container may use of it."""
    speed: dict[str, float]
    """dtype -> floating-point operations a second of a large matrix product; empty where it was not measured."""

    def needed(self, plan: Plan) -> dict[str, tuple[Number, Number]]:
        """What memory -> bytes needed at the peak, and bytes there are."""
        if self.kind == "cpu":
            return {"machine": (plan.device_peak + _sum(plan.host) + _LIBRARIES, self.host)}
        host = _LIBRARIES + max(_sum(plan.host), _sum(plan.saved))
        return {"device": (plan.device_peak + _CUDA, self.memory), "host": (host, self.host)}

    def lacks(self, plan: Plan) -> dict[str, tuple[Number, Number]]:
        """The same of what is too small."""
        return {what: sizes for what, sizes in self.needed(plan).items() if sizes[0] > sizes[1]}

    def seconds(self, work: Pass, dtype: str) -> Number:
        """About how long a pass takes."""
        return (work.model / self.speed[dtype] + work.single / self.speed["float32"]) / _UTILISATION[self.kind]


# --- text ------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Aligned sentences."""

    sentences: Number
    tokens: Number
    """Of a sentence, mean over languages."""
    how: str


def text_of(corpus: CorpusConfig, codes: tuple[str, ...], shape: Shape) -> Text:
    """The corpus, where it is here; else what its preset says and guesses.

    Args:
        codes: of the languages that are read.
    """
    each = _BYTES_PER_TOKEN.get(shape.architecture, _BYTES_PER_TOKEN_ELSEWHERE)
    if isinstance(corpus, FilesCorpus):
        return _text_here(corpus, codes, each)
    known = [size for size in (corpus.sentences if isinstance(corpus, HubCorpus) else None, corpus.max_sentences) if size]
    count = min(known, default=_SENTENCES)
    tokens = _BYTES_PER_SENTENCE / each
    how = f"{count} sentences {'by conf/corpus/' if known else '(a guess)'} of {tokens:.0f} tokens in each language (a guess)"
    return Text(count, tokens, how)


@cache
def _text_here(corpus: FilesCorpus, codes: tuple[str, ...], bytes_per_token: float) -> Text:
    found = load_corpus(corpus, codes)
    mean = sum(len(text.encode()) for texts in found.texts.values() for text in texts) / (len(found.ids) * len(codes))
    return Text(
        len(found.ids), mean / bytes_per_token, f"{len(found.ids)} sentences of {mean:.0f} bytes; {bytes_per_token:g} bytes a token (a guess)"
    )


# --- parts of a run --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SaeSetShape:
    name: str
    width: int
    how: str
    random: bool = False
    """It sees the base model alone, and no reconstruction of it is spliced in."""


@dataclass(frozen=True)
class _Sizes:
    """What all jobs need: the model and what it is asked to read."""

    model: ModelConfig
    shape: Shape
    how: str
    text: Text

    @property
    def number(self) -> int:
        """Bytes of a number in the model."""
        return 4 if self.model.dtype == "float32" else 2

    def weights(self) -> Need:
        count = weights(self.shape)
        return Need(f"model, {count / 1e6:,.0f} M weights in {self.model.dtype}", count * self.number, f"{EXACT} from {self.how}")

    def passing(self, tokens: Number) -> Need:
        """While a block is computed without gradient: its widest layers, and attention scores."""
        s = self.shape
        length = min(self.model.context, _LONGEST * self.text.tokens)
        scores = s.heads * length * (3 * self.number + 4) if self.model.attention == "eager" else 0
        return Need("a block of the model", tokens * (self.number * (3 * s.d_mlp + 4 * s.d_model) + 8 * s.d_model + scores))

    def logits(self, tokens: Number, each: Number) -> Need:
        """With what is computed from them, in bytes for each logit."""
        return Need(f"logits of {tokens:,.0f} tokens x {self.shape.vocabulary:,}", tokens * self.shape.vocabulary * each)

    def forward(self, tokens: Number, *, logits: bool, blocks: int | None = None) -> Number:
        per_token = (blocks or self.shape.layers) * block_work(self.shape, self.text.tokens) + (logit_work(self.shape) if logits else 0)
        return tokens * per_token


def _sizes(config: Config) -> _Sizes | None:
    shape, how = shape_of(config.model)
    return None if shape is None else _Sizes(config.model, shape, how, text_of(config.corpus, config.languages.all, shape))


def make_plan(config: Config) -> Plan | None:
    """The plan of a run; None where the shape of the model, or the width of an SAE, is not known without downloading it."""
    sizes = _sizes(config)
    if sizes is None:
        return None
    if isinstance(config, EvalConfig):
        return _plan_of_eval(config, sizes)
    sae_sets = list(_sae_sets(config, sizes.shape))
    if any(sae_set is None for sae_set in sae_sets):
        return None
    known = [sae_set for sae_set in sae_sets if sae_set is not None]
    layers = sizes.shape.layers if config.sae.layers == "all" else len(config.sae.layers)
    read = _Reading(config, sizes, known, layers)
    return read.plan_of_training(config) if isinstance(config, TrainConfig) else read.plan_of_analysis(config)


def _sae_sets(config: TrainConfig | AnalyzeConfig, shape: Shape) -> Iterator[_SaeSetShape | None]:
    for name, spec in (("measuring", config.sae.measuring), ("held out", config.sae.heldout)):
        if spec is not None:
            width, how = width_of(spec, shape.d_model)
            yield None if width is None else _SaeSetShape(name, width, how)
            if name == "measuring" and width and isinstance(config, AnalyzeConfig) and "random_sae" in config.measures.parts:
                yield from (_SaeSetShape(f"random {draw}", width, how, random=True) for draw in range(1, config.measures.random_sae.draws + 1))


@dataclass(frozen=True)
class _Reading:
    """What analysis and training have in common: text is read through SAEs."""

    config: TrainConfig | AnalyzeConfig
    sizes: _Sizes
    sae_sets: list[_SaeSetShape]
    layers: int
    """So many are measured."""

    @property
    def d(self) -> int:
        return self.sizes.shape.d_model

    def saes(self) -> list[Need]:
        """Encoder, decoder, biases, thresholds and decoder norms, in float32."""
        return [
            Need(
                f"SAEs, {sae_set.name}: {self.layers} x {sae_set.width:,} latents in float32",
                4 * self.layers * (2 * self.d * sae_set.width + 3 * sae_set.width + self.d),
                f"{EXACT}; width from {sae_set.how}",
            )
            for sae_set in self.sae_sets
        ]

    def latents(self, tokens: Number) -> Need:
        """One layer at a time: pre-activations, ReLU, their product with the threshold, the folded ones, what sorting and counting takes."""
        widest = max(sae_set.width for sae_set in self.sae_sets)
        return Need(f"latents of {tokens:,.0f} tokens, a layer at a time", tokens * widest * 5 * 4)

    def residuals(self, tokens: Number, variants: int) -> Need:
        """As the model gives them and in float32, of every layer."""
        kept = min(variants, 2) * self.sizes.number + variants * 4
        return Need(f"residuals of {self.layers} layers", tokens * self.layers * self.d * kept, EXACT)

    def measuring(self, tokens: Number, variants: int, *, logits: bool) -> list[Need]:
        each = 4 * self.sizes.number + 20 if variants > 1 else 2 * self.sizes.number + 8
        in_turn = [self.latents(tokens), self.sizes.passing(tokens), *([self.sizes.logits(tokens, each)] if logits else [])]
        return [self.residuals(tokens, variants), max(in_turn, key=lambda need: need.size)]

    def statistics(self, languages: int, variants: int, sentences: Number) -> Need:
        """Sums in int64 and float64: six per latent, seven per sentence and layer. One language's are copied when they are saved."""
        per_layer = sum(self._seen(sae_set, variants) * (6 * 8 * sae_set.width + 7 * 8 * sentences + 8 * self.d) for sae_set in self.sae_sets)
        return Need(f"statistics of {languages} languages", (languages + 1) * self.layers * per_layer, EXACT)

    def work_of_saes(self, tokens: Number, variants: int) -> Number:
        """Encoder and decoder."""
        return sum(tokens * self._seen(sae_set, variants) * self.layers * 4 * self.d * sae_set.width for sae_set in self.sae_sets)

    def _seen(self, sae_set: _SaeSetShape, variants: int) -> int:
        return 1 if sae_set.random else variants

    # --- analysis ----------------------------------------------------------------------------------------------------------------------------------

    def plan_of_analysis(self, config: AnalyzeConfig) -> Plan:
        """As `workflows.observe` reads."""
        parts, text, codes = config.measures.parts, self.sizes.text, config.languages.all
        variants = 1 if config.adapter is None else 3
        logits = config.adapter is not None or "language_model" in parts
        share = 1.0 if config.split == "all" else getattr(config.corpus.splits, config.split)
        sentences = text.sentences * share
        tokens = sentences * text.tokens * len(codes) / config.shard[1]
        phases = {"measuring": self.measuring(config.batch_tokens, variants, logits=logits)}
        if {"spliced", "causal"} & set(parts):
            phases["intervening"] = [self.sizes.logits(config.batch_tokens, 2 * self.sizes.number + 8), self.latents(config.batch_tokens)]
        host = [self.statistics(len(codes), variants, sentences)]
        if "similarity" in parts:
            kept = min(sentences, config.measures.similarity.sentences)
            host.append(Need(f"mean residuals of {kept:.0f} sentences", len(codes) * self.layers * kept * self.d * 8, EXACT))
        work = [self.pass_of("measuring", tokens, passes=2 if variants > 1 else 1, variants=variants, logits=logits)]
        work += self.further(config, tokens, sentences)
        return Plan([self.sizes.weights(), *self.saes()], phases, host, work, text.how, self.saved())

    def further(self, config: AnalyzeConfig, tokens: Number, sentences: Number) -> Iterator[Pass]:
        """The passes of their own that `measures.parts` asks for."""
        parts, measures, per_sentence = config.measures.parts, config.measures, self.sizes.text.tokens
        codes, models = len(config.languages.all), 1 if config.adapter is None else 2
        if "by_reference" in parts:
            yield self.pass_of("reference statistics", sentences / 2 * per_sentence)
            yield Pass("by the reference statistics", tokens, 0, self.work_of_saes(tokens, 1) / 2)
        if "features" in parts:
            yield self.pass_of("random tokens and strongest contexts", measures.features.random_tokens + tokens)
        if "spliced" in parts:
            read = min(measures.spliced.sentences, sentences) * per_sentence * codes
            times = models * (1 + self.layers * (1 + sum(not sae_set.random for sae_set in self.sae_sets)))
            yield Pass("splicing", read * times, self.sizes.forward(read * times, logits=True), self.work_of_saes(read, 1))
        if "causal" in parts:
            read = min(measures.causal.sentences, sentences / 2) * per_sentence * codes
            arms = (
                models * len(measures.causal.doses) * (2 + measures.causal.draws) * (codes if measures.causal.features == "language_specific" else 1)
            )
            yield Pass("intervening", read * arms, self.sizes.forward(read * arms, logits=True), self.work_of_saes(read * arms, 1) / 2)

    def pass_of(self, what: str, tokens: Number, *, passes: int = 1, variants: int = 1, logits: bool = False) -> Pass:
        return Pass(what, tokens, passes * self.sizes.forward(tokens, logits=logits), self.work_of_saes(tokens, variants))

    def saved(self) -> list[Need]:
        return [self.sizes.weights(), max(self.saes(), key=lambda need: need.size)]

    # --- training ----------------------------------------------------------------------------------------------------------------------------------

    def plan_of_training(self, config: TrainConfig) -> Plan:
        """As `workflows.train` reads: what is frozen, the steps, base and adapter measured on both judging splits."""
        text, batch, splits = self.sizes.text, config.batch_tokens, config.corpus.splits
        source = config.train_corpus or config.corpus
        training = text_of(source, (*config.lang, config.languages.reference), self.sizes.shape)
        trained, judged = training.sentences * source.splits.train, text.sentences * getattr(splits, config.split)
        b, spoken = self.sizes.number, len(config.lang) + 1
        decoded = Need("SAEs' reconstructions of all layers", batch * self.layers * self.d * 4 * 3)
        freezing = [self.residuals(batch, 1), decoded, self.latents(batch)]
        predicting = [self.sizes.logits(batch, 2 * b + 12)] if config.loss.retention.top is not None else []
        phases = {
            "freezing the base model": max(freezing, predicting, key=_sum),
            "a training step": self.step(config, training),
            "measuring": self.measuring(batch, 3, logits=True),
        }
        standing = [self.sizes.weights(), *self.saes(), self.adapter(config)]
        host = [self.statistics(len(config.languages.all), 3, judged), *self.frozen(config, trained, training.tokens)]
        read = trained * training.tokens * spoken
        stepped = config.trainer.steps * config.trainer.sentences * training.tokens * spoken
        again = config.trainer.micro_batch is not None or config.trainer.activation_checkpointing
        measured = (judged * len(config.languages.all) + text.sentences * splits.dev * spoken) * text.tokens
        work = [
            Pass("freezing", 2 * read, 2 * self.sizes.forward(read, logits=True), self.work_of_saes(read, 1)),
            # The base weights are frozen: going back costs as much as going forward, not twice.
            Pass("training", stepped, (3 if again else 2) * self.sizes.forward(stepped, logits=True), self.work_of_loss(config, stepped)),
            self.pass_of("measuring base and adapter", measured, passes=2, variants=3, logits=True),
        ]
        how = text.how if config.train_corpus is None else f"{text.how}; to train on: {training.how}"
        return Plan(standing, phases, host, work, how, self.saved())

    def in_loss(self, config: TrainConfig) -> tuple[int, int, int]:
        """Layers in the loss; how often a target's residuals are encoded there; and how often decoded."""
        gap, layers = config.loss.gap, self.layers if config.loss.gap.layers == "all" else len(config.loss.gap.layers)
        fit = int(config.loss.retention.fit > 0)
        return layers, int(gap.weight > 0 and gap.objective in ("activation", "profile", "hinge")) + fit, fit

    def work_of_loss(self, config: TrainConfig, tokens: Number) -> Number:
        """The measuring SAEs on the targets' tokens, forward and back."""
        layers, encoded, decoded = self.in_loss(config)
        targets = tokens * len(config.lang) / (len(config.lang) + 1)
        return targets * layers * (encoded + decoded) * 2 * 2 * self.d * self.sae_sets[0].width

    def adapter(self, config: TrainConfig) -> Need:
        """Weights, gradients and AdamW's two moments, in float32."""
        blocks = self.sizes.shape.layers if config.peft.layers == "all" else len(config.peft.layers)
        count = blocks * adapter_weights(self.sizes.shape, config)
        how = f"{EXACT} for all linear modules" if isinstance(config.peft, LoraAdapter) and config.peft.targets == "all" else ESTIMATE
        return Need(f"adapter, {count / 1e6:.1f} M weights, and AdamW", count * 16, how)

    def step(self, config: TrainConfig, text: Text) -> list[Need]:
        """What one step keeps for the gradient, and what going back takes at its widest place."""
        trainer, loss, s, b = config.trainer, config.loss, self.sizes.shape, self._precision(config)
        sentences = -(-trainer.sentences // (trainer.devices * trainer.nodes))
        longest = min(config.model.context, _LONGEST * text.tokens)
        part = min(trainer.micro_batch or sentences, sentences)
        read = part * longest
        """Padded tokens of one language that are read at once."""
        languages = 1 if trainer.micro_batch else len(config.lang) + 1
        modules = linear_modules(s)
        numbers = sum(i + o for i, o in modules) + 2 * (s.heads + s.kv_heads) * s.head_dim + s.d_mlp
        scores = s.heads * longest * (3 * b + 4) if config.model.attention == "eager" else 0
        block = b * numbers + 8 * 4 * s.d_model + scores
        blocks = b * s.d_model * s.layers + block if trainer.activation_checkpointing else block * s.layers
        target = 1 if trainer.micro_batch else len(config.lang)
        layers, encoded, _ = self.in_loss(config)
        needs = [
            Need(f"activations of {s.layers} blocks, {languages * read:,.0f} tokens", languages * read * blocks),
            Need(f"residuals of {layers} layers in the loss", languages * read * layers * self.d * 4 * 4),
        ]
        if encoded:
            kept = 8 * layers * encoded + 12
            needs.append(Need(f"latents of {layers} layers in the loss", target * read * self.sae_sets[0].width * kept))
        retention = loss.retention
        speaking = bool(retention.kl or retention.lm or retention.limit) + len(config.lang) * bool(retention.target_kl or loss.target_lm)
        if speaking:
            kept = min(speaking, languages)
            needs.append(self.sizes.logits(read, kept * (3 * b + 12) + 12))
        return needs

    def _precision(self, config: TrainConfig) -> int:
        return 4 if config.trainer.precision == "32-true" and config.model.dtype == "float32" else 2

    def frozen(self, config: TrainConfig, sentences: Number, tokens: Number) -> Iterator[Need]:
        """What is kept of the base model on the training sentences, in host memory."""
        retention, spoken = config.loss.retention, len(config.lang) + 1
        rows = sentences * tokens * spoken
        if retention.top is not None:
            yield Need(f"next tokens of the base model, the {retention.top} likeliest", rows * (8 * retention.top + 4))
        sums = self.layers * (rows * 4 + spoken * sentences * (self.d + 4) * 4)
        if config.loss.gap.objective == "profile":
            sums += self.layers * sentences * self.sae_sets[0].width * 4
        yield Need("norms, means and fit of the base model", sums)


def adapter_weights(shape: Shape, config: TrainConfig) -> int:
    """Trained weights of a block's adapter. Exact for LoRA and DoRA on all linear modules, near enough for the other kinds."""
    peft, modules = config.peft, linear_modules(shape)
    if isinstance(peft, LoraAdapter):
        return sum(peft.r * (i + o) + (o if peft.use_dora else 0) for i, o in modules)
    if isinstance(peft, VeraAdapter):
        return sum(peft.r + o for _, o in modules)
    return sum(2 * getattr(peft, "r", 1) * (i + o) for i, o in modules)


# --- evaluation ------------------------------------------------------------------------------------------------------------------------------------


def _plan_of_eval(config: EvalConfig, sizes: _Sizes) -> Plan:
    """As `workflows.evaluate` reads: questions and text, base model and each adapter."""
    options = config.tasks.batch_size if config.tasks.batch_size != "auto" else 1  # auto takes what is there
    codes, models = len(config.languages.all), 1 + len(config.adapter)
    phases = {"questions": [sizes.logits(options * min(config.model.context, 4 * _TOKENS_PER_OPTION), 10)]}
    asked = (config.tasks.limit or _ITEMS) * _OPTIONS * (len(config.tasks.benchmarks) + len(config.tasks.own)) * codes * _TOKENS_PER_OPTION * models
    work = [Pass("questions", asked, sizes.forward(asked, logits=True))]
    if config.text_split is not None:
        share = 1.0 if config.text_split == "all" else getattr(config.corpus.splits, config.text_split)
        read = sizes.text.sentences * share * sizes.text.tokens * codes * models
        phases["text"] = [sizes.logits(config.batch_tokens, 2 * sizes.number + 8)]
        work.append(Pass("text", read, sizes.forward(read, logits=True)))
    how = f"{sizes.text.how}; {config.tasks.limit or _ITEMS} items of {_OPTIONS} options of {_TOKENS_PER_OPTION} tokens (a guess)"
    return Plan([sizes.weights()], phases, [], work, how, [sizes.weights()])


# --- this machine ----------------------------------------------------------------------------------------------------------------------------------


def look(device: str, dtypes: set[str]) -> Hardware:
    """The hardware that the run would use, with the speed of a large matrix product in each dtype, which takes up to 0.15 s.

    Raises:
        UserError: the device is not there.
    """
    import torch

    from lingact.models.lm import resolve_device

    where = resolve_device(device)
    speed = {dtype: _speed(torch.device(where), getattr(torch, dtype)) for dtype in dtypes}
    if where.type == "cpu":
        return Hardware(f"{os.cpu_count()} CPU cores", "cpu", _host_memory(), _host_memory(), speed)
    about = torch.cuda.get_device_properties(where)
    return Hardware(about.name, where.type, float(about.total_memory), _host_memory(), speed)


def _speed(device: Any, dtype: Any) -> Number:
    import torch

    size = 1024 if device.type == "cpu" else 4096
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + 0.15
    while time.perf_counter() < end:
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
        if best > 0.1:
            break
    return 2 * size**3 / best


def _host_memory() -> Number:
    """Bytes of this machine, or of what the container may use of it."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return total if told == "max" else min(total, float(told))


# --- refusing and advising -------------------------------------------------------------------------------------------------------------------------


def advice(config: Config, hardware: Hardware) -> list[str]:
    """Overrides that need less, each with the peak that it leaves; those that are enough by themselves first; then all together."""
    lacking = hardware.lacks(_known(make_plan(config)))
    tried: list[tuple[bool, float, str]] = []
    together: Config = config
    for key, value in _smaller(config):
        changed, together = _with(config, key, value), _with(together, key, value)
        plan = _known(make_plan(changed))
        needed = hardware.needed(plan)
        saved = sum(lacking[what][0] - needed[what][0] for what in lacking)
        if saved > 0.02 * sum(size for size, _ in lacking.values()):
            told = ", ".join(f"{needed[what][0] / GB:.1f} GB" for what in lacking)
            tried.append((bool(hardware.lacks(plan)), -saved, f"{key}={_as_override(value)} ({told})"))
    lines = [text for _, _, text in sorted(tried)]
    whole = hardware.needed(_known(make_plan(together)))
    if len(lines) > 1:
        lines.append(f"all of these ({', '.join(f'{whole[what][0] / GB:.1f} GB' for what in lacking)})")
    return lines


def _known(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan


def _smaller(config: Config) -> Iterator[tuple[str, Any]]:
    """What a user might give up."""
    if config.batch_tokens > 512:
        yield "batch_tokens", max(512, config.batch_tokens // 4)
    if config.model.dtype == "float32":
        yield "model.dtype", "bfloat16"
    if isinstance(config, EvalConfig):
        if config.tasks.batch_size not in ("auto", 1):
            yield "tasks.batch_size", 1
        return
    if isinstance(config, TrainConfig):
        if config.trainer.micro_batch != 1:
            yield "trainer.micro_batch", 1
        if not config.trainer.activation_checkpointing:
            yield "trainer.activation_checkpointing", True
    elif "random_sae" in config.measures.parts and config.measures.random_sae.draws > 1:
        yield "measures.random_sae.draws", 1
    if config.sae.heldout is not None:
        yield "sae.heldout", None
    shape, _ = shape_of(config.model)
    layers = tuple(range(shape.layers if shape else 0)) if config.sae.layers == "all" else config.sae.layers
    if len(layers) > 4:
        yield "sae.layers", layers[:: max(2, len(layers) // 6)]


def _with(node: Any, key: str, value: Any) -> Any:
    """The configuration with one value changed."""
    head, _, rest = key.partition(".")
    return node.model_copy(update={head: _with(getattr(node, head), rest, value) if rest else value})


def _as_override(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower()


def begin(config: Config) -> None:
    """How a run begins: with one line about what it will take, unless its model is tiny or the plan is switched off.

    Raises:
        UserError: it cannot fit, with what would.
    """
    shape, _ = shape_of(config.model)
    if config.plan == "off" or _without_model(config) or shape is None or weights(shape) * (4 if config.model.dtype == "float32" else 2) < TINY:
        return
    plan = make_plan(config)
    if plan is None:
        return
    hardware = look(config.device, {config.model.dtype, "float32"})
    lacking = hardware.lacks(plan)
    if lacking:
        raise UserError("\n".join([*_refusal(lacking, hardware, plan), *(f"  {line}" for line in advice(config, hardware)), _ANYWAY]))
    told = ", ".join(f"{needed / GB:.1f} of the {what}'s {there / GB:.1f} GB" for what, (needed, there) in hardware.needed(plan).items())
    note(f"about {told} on {hardware.name}, {_duration(_total(plan, hardware, config))} (estimates; plan=true shows how they come about)")


def _without_model(config: Config) -> bool:
    """Whether the analysis is one of statistics that are there already."""
    return isinstance(config, AnalyzeConfig) and bool(config.stats or config.compare)


_ANYWAY = "If you know better: plan=false"


def _refusal(lacking: dict[str, tuple[Number, Number]], hardware: Hardware, plan: Plan) -> Iterator[str]:
    for what, (needed, there) in lacking.items():
        yield (
            f"this run would need about {needed / GB:.1f} GB of memory of the {what} ({hardware.name}), which has {there / GB:.1f} GB; its widest "
            f"part: {plan.widest}"
        )
    yield "Less, with the peak that it leaves:"


def _total(plan: Plan, hardware: Hardware, config: Config) -> Number:
    return sum(hardware.seconds(work, config.model.dtype) for work in plan.work)


def _duration(seconds: Number) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.0f} h"


# --- telling ---------------------------------------------------------------------------------------------------------------------------------------


def tell(config: Config) -> None:
    """Print the whole plan, whether or not the run fits."""
    if _without_model(config):
        note("no plan: the statistics are there already, and no model is loaded")
        return
    plan = make_plan(config)
    if plan is None:
        note(
            f"no plan: the shape of '{config.model.name}' or the width of its SAEs is not known on this machine before they are downloaded. Give "
            "model.shape and sae.measuring.width, or a preset that has them"
        )
        return
    try:
        hardware = look(config.device, {config.model.dtype, "float32"})
    except UserError as error:
        note(str(error))
        hardware = None
    rows = [_row("all the time", need) for need in plan.device]
    rows += [_row(phase, need) for phase, needs in plan.phases.items() for need in needs]
    rows += [_row("in host memory", need) for need in [*plan.host, Need("Python and libraries", _LIBRARIES, "measured")]]
    show(rows, title=f"Memory, {config.model.name}")
    show([_work_row(work, hardware, config) for work in plan.work], title="Passes")
    if hardware is not None:
        show([_verdict(what, *sizes) for what, sizes in hardware.needed(plan).items()], title=f"On {hardware.name}, at the peak ({plan.widest})")
        share = f"{_UTILISATION[hardware.kind]:.0%} of the speed of a large matrix product here"
        note(f"about {_duration(_total(plan, hardware, config))} in all, at {share} (a guess)")
    note(f"tokens: {plan.text}")
    if hardware is not None and hardware.lacks(plan):
        note("less, with the peak that it leaves: " + "; ".join(advice(config, hardware)))


def _verdict(what: str, needed: Number, there: Number) -> dict[str, object]:
    verdict = "it fits" if needed <= there else "DOES NOT FIT"
    return {"memory of": what, "GB needed": f"{needed / GB:.1f}", "GB there": f"{there / GB:.1f}", "verdict": verdict}


def _row(when: str, need: Need) -> dict[str, object]:
    return {"when": when, "what": need.what, "GB": f"{need.size / GB:.2f}", "how it is known": need.how}


def _work_row(work: Pass, hardware: Hardware | None, config: Config) -> dict[str, object]:
    row: dict[str, object] = {"pass": work.what, "tokens": f"{work.tokens:,.0f}", "TFLOP model": f"{work.model / 1e12:,.1f}"}
    row |= {"TFLOP SAEs": f"{work.single / 1e12:,.1f}"}
    return row | ({"about": _duration(hardware.seconds(work, config.model.dtype))} if hardware else {})
