"""Training on the tiny model: weights over the steps, the multiplier, the stop, and what goes wrong on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pydantic import ValidationError
from transformers import get_cosine_schedule_with_warmup

from lingact.config.training import OptimConfig, TrainerConfig
from lingact.data.corpus import ParallelCorpus
from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.models.adapter_hashes import weights_hash
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionaries
from lingact.training.base_cache import CacheSettings, cached_reference
from lingact.training.base_targets import BaseOutputs
from lingact.training.batch_loss import BatchLoss
from lingact.training.batches import AlignedBatches, AlignedData
from lingact.training.checkpoints import CheckpointCallback, LastStep
from lingact.training.module import Diverged, GapModule
from tests.helpers.losses import LAYERS, OFF, WEIGHTS, adapted, loss_of
from tests.helpers.paths import CONF

TRAINER = yaml.safe_load((CONF / "trainer" / "default.yaml").read_text())
Make = Callable[..., GapModule]


@pytest.fixture
def make(lm: LanguageModel, dictionaries: Dictionaries, corpus: ParallelCorpus) -> Make:
    """`make(gap, retention, ...)`: a module on layers 0 and 2 with an adapter that has moved already; sentences take several windows."""
    lm.tokens = Tokens(lm.tokenizer, 12)
    chosen = {layer: dictionaries[layer] for layer in LAYERS}
    base = cached_reference(lm, chosen, corpus, "en", CacheSettings(64), profiles=False)

    def module(
        gap: dict[str, Any], retention: dict[str, Any] | None = None, *, dropout: float = 0.0, trainer: dict[str, Any] | None = None, **rest: Any
    ) -> GapModule:
        adapted(lm, dropout)
        optim = OptimConfig(lr=0.003, weight_decay=0, warmup_steps=0)
        settings = TrainerConfig.model_validate(TRAINER | {"steps": 20} | (trainer or {}))
        return GapModule(
            BatchLoss(lm, chosen, BaseOutputs(base, base, {}, {}), "en", WEIGHTS, loss_of(gap, retention or {}, **rest)), optim, settings, 0
        )

    return module


# --- over steps ---


def fit(
    module: GapModule,
    corpus: ParallelCorpus,
    folder: Path,
    steps: int,
    *,
    resume: Path | None = None,
    keeper: tuple[LastStep, CheckpointCallback] | None = None,
) -> pl.Trainer:
    """Every step is kept in a file of its own, unless a keeper is given."""
    every = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    plugins, keep = ([keeper[0]], keeper[1]) if keeper else ([], every)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=[keep], plugins=plugins,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    spoken = corpus.speaking(("es", "en"))
    data = AlignedData(AlignedBatches(module.batch_loss.lm.tokens, spoken, sentences=4, count=steps, seed=0))
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return trainer


calm = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*exists and is not empty", "ignore:.*LeafSpec:FutureWarning", "ignore:.*in eval mode at the start"
)


@calm
def test_the_multiplier_follows_the_limit(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({}, {"kl": 0.5, "limit": 0.02, "rate": 3.0})
    fit(module, corpus, tmp_path, 4)
    rows = module.history
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    expected = 0.5
    for row in rows:
        assert row["multiplier"] == pytest.approx(expected)
        assert row["loss/weighted/retention"] == pytest.approx(row["multiplier"] * row["loss/raw/retention"], rel=1e-5)
        kl = row["loss/raw/retention"]
        assert kl > 0.001
        expected = max(0.0, expected + 3.0 * (kl - 0.02))
    assert module.multiplier == pytest.approx(expected)


@calm
def test_a_multiplier_that_has_fallen_to_zero(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make(OFF, {"kl": 0.5, "limit": 1000.0})
    fit(module, corpus, tmp_path, 3)
    assert [row["multiplier"] for row in module.history] == [0.5, 0, 0]
    assert [row["loss/total"] == 0 for row in module.history] == [False, True, True]


def test_learning_rates_are_those_of_transformers_a_step_later_but_for_rounding(make: Make) -> None:
    """Theirs begin at zero, so the numbers of steps are one more; and theirs round in another order."""
    module = make({})
    module.optim, module.steps = module.optim.model_copy(update={"warmup_steps": 3}), 30
    found = module.configure_optimizers()
    optimizer, own = found["optimizer"], found["lr_scheduler"]["scheduler"]
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=module.optim.lr)
    theirs = get_cosine_schedule_with_warmup(other, num_warmup_steps=4, num_training_steps=31)
    assert theirs.get_last_lr() == [0.0]
    rates = []
    for _ in range(30):
        for each, schedule in ((other, theirs), (optimizer, own)):
            each.step()
            if each is other:
                schedule.step()
        rates.append((*own.get_last_lr(), *theirs.get_last_lr()))
        own.step()
    ours, shifted = zip(*rates, strict=True)
    assert ours == pytest.approx(shifted, rel=1e-12)
    assert ours != shifted, "they agree to the last bit: use transformers' schedule"


@calm
def test_the_gap_term_warms_up_over_steps(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({"weight": 2.0}, warm_up=3)
    fit(module, corpus, tmp_path, 5)
    ratios = [row["loss/weighted/gap"] / row["loss/raw/gap"] for row in module.history]
    assert ratios == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@calm
def test_training_stops_when_the_gap_is_closed_also_after_resuming_there(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    probe = make({}, {"kl": 0.01})
    start = {key: value.clone() for key, value in probe.state_dict().items()}
    fit(probe, corpus, tmp_path / "probe", 16)

    means = {done: sum(row["loss/raw/gap"] for row in probe.history[done - 10 : done]) / 10 for done in range(10, 16)}
    stop = min(means, key=lambda done: means[done])
    assert stop > 10
    lowest, next_lowest, *_ = sorted(means.values())
    gap = {"stop_when_closed": True, "tolerance": (lowest + next_lowest) / 2}
    probe.load_state_dict(start, strict=False)
    module = make(gap, {"kl": 0.01})
    assert fit(module, corpus, tmp_path / "run", 16).global_step == stop
    assert module.history == probe.history[:stop]
    final = {key: value.clone() for key, value in module.state_dict().items()}

    for step in (stop, 7):
        probe.load_state_dict(start, strict=False)
        resumed = make(gap, {"kl": 0.01})
        trainer = fit(resumed, corpus, tmp_path / "run", 16, resume=tmp_path / "run" / f"step={step}.ckpt")
        assert trainer.global_step == stop
        assert resumed.history == module.history
        assert all(torch.equal(final[key], value) for key, value in resumed.state_dict().items())


def weights(module: GapModule) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@calm
def test_dropout_follows_from_seed_and_step_alone(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({}, {"kl": 1.0}, dropout=0.3)
    start = weights(module)
    fit(module, corpus, tmp_path / "run", 5)
    final, history = weights(module), module.history
    for step in (None, 3):
        torch.manual_seed(12345)  # whatever state the process is in
        module.load_state_dict(start, strict=False)
        again = make({}, {"kl": 1.0})
        fit(again, corpus, tmp_path / "run", 5, resume=tmp_path / "run" / f"step={step}.ckpt" if step else None)
        assert again.history == history
        assert all(torch.equal(final[key], value) for key, value in again.state_dict().items())
    assert history[1]["loss/total"] != pytest.approx(history[0]["loss/total"], rel=1e-6)
    other = make({}, {"kl": 1.0})
    other.load_state_dict(start, strict=False)
    other.seed = 1
    fit(other, corpus, tmp_path / "other", 1)
    assert other.history[0]["loss/total"] != history[0]["loss/total"]


def too_large(rows: int, *, backward: bool = False) -> Callable[..., None]:
    """A forward hook of a machine whose memory holds so many rows."""

    def refuse(_grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if len(output) > rows and not backward:
            refuse(output)
        if len(output) > rows and output.requires_grad:
            output.register_hook(refuse)

    return hook


@calm
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_out_of_memory_halves_the_parts_and_changes_no_step(
    make: Make, corpus: ParallelCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], backward: bool
) -> None:
    module = make({"objective": "contrastive"}, {"kl": 1.0})
    start = weights(module)
    fit(module, corpus, tmp_path / "roomy", 3)
    roomy, final = module.history, weights(module)
    module.load_state_dict(start, strict=False)
    short = make({"objective": "contrastive"}, {"kl": 1.0})
    lengths = [len(windows) for code in ("es", "en") for windows in short.batch_loss.lm.tokens.by_sentence(corpus.texts[code])]
    handle = short.batch_loss.lm.blocks[1].register_forward_hook(too_large(max(lengths), backward=backward))
    try:
        trainer = fit(short, corpus, tmp_path / "short", 3)
    finally:
        handle.remove()
    assert trainer.global_step == 3
    assert short.part in (1, 2)
    assert f"going on with {short.part} of 4 sentences at a time" in capsys.readouterr().out
    assert [row["step"] for row in short.history] == [0, 1, 2], "a step that was tried twice is there once"
    for mine, theirs in zip(short.history, roomy, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(weights(short), final, rtol=1e-3, atol=1e-4)
    saved = torch.load(tmp_path / "short" / "step=3.ckpt", weights_only=True)
    assert saved["part"] == short.part, "a resumed run does not have to find out again"


@calm
def test_out_of_memory_with_one_sentence_says_what_helps(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({}, {"kl": 1.0})
    before = weights(module)
    handle = module.batch_loss.lm.blocks[1].register_forward_hook(too_large(0))
    try:
        with pytest.raises(UserError, match=r"out of memory with 1 of 4 sentences at a time .* a shorter model.context"):
            fit(module, corpus, tmp_path, 3)
    finally:
        handle.remove()
    assert all(torch.equal(value, weights(module)[key]) for key, value in before.items())


@calm
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_it_spoils_the_adapter(make: Make, corpus: ParallelCorpus, tmp_path: Path, where: str) -> None:
    module = make({}, {"kl": 1.0})
    base, count = weights_hash(module.model), 0

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal count
        count += output.requires_grad
        if count < 5 or not output.requires_grad:  # two passes a step have gradient
            return None
        if where == "loss":
            return output * float("nan")
        output.register_hook(lambda grad: grad * float("inf"))
        return None

    handle = module.batch_loss.lm.blocks[2].register_forward_hook(spoil)
    try:
        with pytest.raises(Diverged) as caught:
            fit(module, corpus, tmp_path, 9)
    finally:
        handle.remove()
    assert caught.value.step == 2
    assert ("the loss is nan (gap" in str(caught.value)) if where == "loss" else ("gradient of" in str(caught.value))
    data = AlignedBatches(module.batch_loss.lm.tokens, corpus, sentences=4, count=9, seed=0)
    assert caught.value.sentences == data.sentences_of(2)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    last = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in last.items()), "as after the last good step"
    assert weights_hash(module.model) == base


@calm
def test_the_last_whole_step_is_kept_where_a_gradient_is_not_finite(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module, kept, last = make({}, {"kl": 1.0}), LastStep({}), tmp_path / "last.ckpt"
    keeper = CheckpointCallback(kept, last, every=100, minutes=1000.0)

    def spoil(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad and module.global_step == 2:
            output.register_hook(lambda grad: grad * float("inf"))

    handle = module.batch_loss.lm.blocks[2].register_forward_hook(spoil)
    try:
        with pytest.raises(Diverged, match="gradient of"):
            fit(module, corpus, tmp_path, 9, keeper=(kept, keeper))
    finally:
        handle.remove()
    saved = kept.load_checkpoint(last)
    assert (saved["global_step"], len(saved["history"])) == (2, 2)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in saved["state_dict"].items())


@calm
def test_recomputed_activations_give_the_same_training(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({}, {"kl": 1.0}, dropout=0.2)
    start = weights(module)
    fit(module, corpus, tmp_path / "plain", 2)
    plain, final = module.history, weights(module)
    module.load_state_dict(start, strict=False)
    checkpointed = make({}, {"kl": 1.0}, trainer={"activation_checkpointing": True})
    passes: list[bool] = []
    handle = checkpointed.batch_loss.lm.blocks[0].mlp.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    try:
        fit(checkpointed, corpus, tmp_path / "again", 2)
    finally:
        handle.remove()
    assert sum(passes) > 4 * 2 - 1, "every block ran twice with gradient: two languages, two steps"
    for mine, theirs in zip(checkpointed.history, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(weights(checkpointed), final, rtol=1e-4, atol=1e-6)
    assert not any(m.training for m in checkpointed.model.modules())


@calm
def test_no_step_touches_the_base_model(make: Make, corpus: ParallelCorpus, tmp_path: Path) -> None:
    module = make({}, {"kl": 1.0})
    base, before = weights_hash(module.model), weights(module)
    fit(module, corpus, tmp_path, 2)
    assert weights_hash(module.model) == base
    assert set(before) == {f"model.{key}" for key, p in module.model.named_parameters() if p.requires_grad}
    assert len(before) == 2 * 3 * 3
    assert not any(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# --- what is refused ---


@pytest.mark.parametrize(
    ("gap", "rest", "message"),
    [
        ({"weight": 0.0}, {}, "all weights are zero"),
        ({"weight": 0.0, "stop_when_closed": True}, {"target_lm": 1.0}, "stop_when_closed needs a gap term"),
        ({"objective": "norm", "norm_matched": True}, {}, "removes the norms"),
        ({}, {"control": "shuffled_pairs"}, "control=shuffled_pairs changes nothing with gap.objective=activation"),
        ({"objective": "diffmean"}, {"control": "random_features"}, "it goes with activation or profile or hinge"),
        ({"objective": "hinge", "gradient": "straight_through"}, {}, "gap.gradient=straight_through changes nothing"),
        (
            {"objective": "profile", "side": "one_sided"},
            {},
            "gap.side=one_sided changes nothing with gap.objective=profile; it goes with activation or norm",
        ),
        ({"objective": "diffmean", "pooling": "sentence"}, {}, "gap.pooling=sentence changes nothing with gap.objective=diffmean"),
    ],
)
def test_losses_that_would_do_nothing_are_refused(gap: dict[str, Any], rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        loss_of(gap, {}, **rest)
