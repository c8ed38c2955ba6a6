"""Training SAEs: two mixes of languages at three layers.

Each way trains batch-top-k SAEs of the same shape on as many tokens, in steps of the same size. `runner a mix` is sae-lens's `MultiSAETrainingRunner`
with all layers, once for each mix; `runner an SAE` is the same with one layer. `reading` and `steps` are the two parts of lingact's work alone. The
two mixes share half of their text.
"""

import contextlib
import io
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.setting import LANGUAGES, Setting, load, text
from benchmarks.ways import Prepare, Run
from lingact.config.saes import SaeMix, SaeTraining
from lingact.models.lm import LanguageModel
from lingact.saes.engine import Reader, train_sets
from lingact.saes.mix import Rows, make_schedule, most_windows
from lingact.saes.trainers import SetTrainer
from lingact.saes.whitening import partly_whitened

CONTEXT, STEP, BUFFER, READ = 128, 512, 4096, 4096
"""Tokens of a window, of a step, of the buffer that shuffles, of a forward pass."""
TOKENS = {False: 8192, True: 32_768}
"""That each SAE is trained on: in the default size, and in the published one."""
K = 32
SETS = {"mostly_english": SaeMix(mix={"en": 0.75, "hi": 0.25}, seed=0), "equal": SaeMix(mix={"en": 0.5, "hi": 0.25, "ml": 0.25}, seed=0)}


def layers_of(lm: LanguageModel) -> tuple[int, ...]:
    """A quarter, a half and three quarters of the way."""
    return tuple(len(lm.blocks) * quarter // 4 for quarter in (1, 2, 3))


def training_of(setting: Setting) -> SaeTraining:
    """The recipe, the same for all ways."""
    return SaeTraining(
        layers="all", architecture="batchtopk", width=setting.width, k=K, sparsity=1.0, tokens=tokens_of(setting), batch_tokens=STEP,
        buffer_tokens=BUFFER, context=CONTEXT, lr=1e-3, whitening=0.25, dead_after=100, checkpoint_minutes=10_000,
    )  # fmt: skip


def tokens_of(setting: Setting) -> int:
    """Tokens that each SAE is trained on."""
    return TOKENS[setting.sentences > 4]


def reader_of(setting: Setting, lm: LanguageModel) -> Reader:
    """Windows of the aligned text, repeated where it is too short."""
    room, count = CONTEXT - len(lm.tokens.prefix), -(-(tokens_of(setting) + 2 * STEP) // (CONTEXT - len(lm.tokens.prefix)))
    needed = most_windows(SETS, LANGUAGES, count)
    windows: dict[str, Rows] = {}
    for code, texts in text(setting).texts.items():
        ids = np.concatenate([np.array(lm.tokens.tokenizer(each, add_special_tokens=False).input_ids) for each in texts])
        windows[code] = np.resize(ids, (needed[code], room)).astype(np.int32)
    schedule = make_schedule(SETS, {code: len(rows) for code, rows in windows.items()}, windows=count, epochs=1, window_tokens=room, seed=0)
    return Reader(lm, layers_of(lm), windows, schedule, CONTEXT, READ)


def _lingact(setting: Setting) -> Run:
    lm = load(setting)
    reader, training = reader_of(setting, lm), training_of(setting)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_sets(reader, SETS, training, metadata={}, header={}, folder=Path(folder))

    return run


def _reading(setting: Setting) -> Run:
    reader = reader_of(setting, load(setting))

    def run() -> None:
        for places in reader.passes:
            reader.read(places)

    return run


def _steps(setting: Setting) -> Run:
    lm = load(setting)
    training, sample = training_of(setting), reader_of(setting, lm).sample()
    inputs = {layer: partly_whitened(sample[:, column], training.whitening) for column, layer in enumerate(layers_of(lm))}
    batch = sample[torch.randperm(len(sample))[:STEP]]

    def run() -> None:
        for mix in SETS.values():
            trainer = SetTrainer(training, mix, inputs, {}, "cpu")
            while trainer.done < trainer.steps:
                trainer.add(batch)

    return run


def _runner(setting: Setting, *, of_all_layers: bool) -> Run:
    from datasets import Dataset
    from sae_lens.load_model import HookedProxyLM

    lm = load(setting)
    reader = reader_of(setting, lm)
    names = {f"layer_{layer}": f"model.layers.{layer}" for layer in layers_of(lm)}
    model = HookedProxyLM(lm.model, lm.tokenizer, hook_names=list(names.values()))
    data = [Dataset.from_dict({"tokens": _windows_of(reader, column)}) for column in range(len(SETS))]
    chosen = [names] if of_all_layers else [{name: hook} for name, hook in names.items()]

    def run() -> None:
        for own in data:
            for hooks in chosen:
                _train(setting, model, own, hooks, lm.d_model)

    return run


def _windows_of(reader: Reader, column: int) -> list[list[int]]:
    """The windows of a set with BOS, and as many again, because the runner reads ahead."""
    schedule = reader.schedule
    chosen = np.flatnonzero(schedule.member[:, column])
    rows = [reader.windows[schedule.codes[schedule.language[place]]][schedule.window[place]].tolist() for place in chosen]
    return 2 * [reader.lm.tokens.prefix + row for row in rows]


def _train(setting: Setting, model: Any, data: Any, hooks: dict[str, str], d_model: int) -> None:
    from sae_lens.config import LoggingConfig
    from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig

    logging.disable(logging.WARNING)
    given: dict[str, Any] = {"d_in": d_model, "d_sae": setting.width, "k": K, "apply_b_dec_to_input": True}
    config = MultiSAETrainingRunnerConfig(
        saes={name: BatchTopKTrainingSAEConfig(**given, normalize_activations="expected_average_only_in") for name in hooks},
        hook_names=hooks,
        model_class_name="AutoModelForCausalLM",
        context_size=CONTEXT,
        n_batches_in_buffer=BUFFER // CONTEXT,
        store_batch_size_prompts=READ // CONTEXT,
        training_tokens=tokens_of(setting),
        train_batch_size_tokens=STEP,
        n_batches_for_norm_estimate=2,
        lr=1e-3,
        dead_feature_window=100,
        streaming=False,
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        MultiSAETrainingRunner(config, override_dataset=data, override_model=model).run()


WAYS: dict[str, Prepare] = {
    "lingact": _lingact,
    "reading": _reading,
    "steps": _steps,
    "runner a mix": partial(_runner, of_all_layers=True),
    "runner an SAE": partial(_runner, of_all_layers=False),
}
