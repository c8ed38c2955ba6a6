"""Every number has bounds that make sense for what it does, is finite, and is told at the door; words are not blank and lists have no doubles."""

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lingact.cli import main as cli
from lingact.config.base import ConfigSection
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate, validate_config
from lingact.errors import UserError
from tests.helpers.paths import CONF


@functools.cache
def composed(job: str, *groups: str) -> Any:
    needed = {"train": ["lang=ml"], "saes": ["text.path=somewhere"]}.get(job, [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(job, overrides=[*needed, *groups])


def judged(job: str, *overrides: str) -> ConfigSection:
    """The configuration with values as Hydra reads them; it is composed once, which takes most of the time."""
    groups = tuple(text for text in overrides if text.partition("=")[0] in ("corpus", "measures"))
    config = copy.deepcopy(composed(job, *groups))
    for override in OverridesParser.create().parse_overrides([text for text in overrides if text not in groups]):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=False, force_add=True)
    return validate_config(SCHEMAS[job], config)


REFUSED = {
    # of the issue
    "train loss.gap.weight=inf": "loss.gap.weight: Input should be a finite number; got inf",
    "train statistics.resamples=1": "statistics.resamples: Input should be greater than or equal to 100; got 1",
    # not finite, whatever it is called
    "train loss.gap.weight=nan": "loss.gap.weight: Input should be a finite number; got nan",
    "train loss.gap.weight=1e400": "loss.gap.weight: Input should be a finite number; got inf",
    "train loss.gap.weight=-inf": "loss.gap.weight: Input should be a finite number; got -inf",
    "train optim.lr=.inf": "optim.lr: Input should be ",
    "train peft.alpha=nan": "peft.alpha: Input should be a finite number; got nan",
    "train trainer.gradient_clip=inf": "trainer.gradient_clip: Input should be a finite number; got inf",
    "train loss.retention.limit=inf": "loss.retention.limit: Input should be a finite number; got inf",
    "train loss.gap.layers={0:1.0,2:nan}": "loss.gap.layers: the weight of layer 2 is nan; give a number from 1e-06 to 1e+06",
    "train loss.gap.layers={0:inf}": "loss.gap.layers: the weight of layer 0 is inf",
    "train corpus.splits.train=nan": "corpus.splits.train: Input should be a finite number; got nan",
    "train model.training_shares={en:inf}": "model.training_shares.en: Input should be a finite number; got inf",
    "analyze measures.causal.doses=[0,nan]": "measures.causal.doses: Input should be a finite number; got nan",
    "eval contamination.share=nan": "contamination.share: Input should be a finite number; got nan",
    "eval power=nan": "power: Input should be a finite number; got nan",
    # a boolean is not a number
    "train trainer.steps=true": "trainer.steps: true is not a number",
    "train loss.gap.weight=yes": "loss.gap.weight: ",
    "train seed=false": "seed: false is not a number",
    "train model.bos=maybe": "model.bos: 'maybe' is neither auto nor true or false",
    # beyond what means anything
    "train loss.gap.weight=1e30": "loss.gap.weight: it is 1e+30; give 0, or a number from 1e-06 to 1e+06",
    "train loss.retention.kl=1e-300": "loss.retention.kl: it is 1e-300; give 0, or a number from 1e-06 to 1e+06",
    "train loss.gap.temperature=1e-30": "loss.gap.temperature: Input should be greater than or equal to 0.001",
    "train optim.lr=2": "optim.lr: Input should be less than or equal to 1; got 2",
    "train optim.lr=1e-320": "optim.lr: Input should be greater than or equal to 0.0000000001; got 1e-320",
    "train optim.weight_decay=3": "optim.weight_decay: Input should be less than or equal to 1; got 3",
    "train peft.dropout=1": "peft.dropout: Input should be less than 1; got 1",
    "train trainer.steps=99999999999999999999": "trainer.steps: Input should be less than or equal to 1000000000",
    "train trainer.workers=1000": "trainer.workers: Input should be less than or equal to 256; got 1000",
    "analyze seed=4294967296": "seed: Input should be less than 4294967296",
    "analyze batch_tokens=1e12": "batch_tokens: Input should be less than or equal to 1000000000",
    "analyze model.context=1": "model.context: Input should be greater than or equal to 2; got 1",
    "analyze shard=1/99999999999999999999": "shard: Input should be less than or equal to 100000",
    "analyze shard=[5,4]": "shard: there is no shard 6 of 4; write for instance shard=2/4",
    "analyze measures.features.alpha=0.95": "measures.features.alpha: Input should be less than or equal to 0.5; got 0.95",
    "analyze measures.features.random_tokens=1": "measures.features.random_tokens: Input should be greater than or equal to 100; got 1",
    "analyze measures.causal.doses=[1e30]": "measures.causal.doses: Input should be less than or equal to 1000; got 1e+30",
    "analyze corpus.max_sentences=1": "corpus.max_sentences: Input should be greater than or equal to 2; got 1",
    "eval tasks.batch_size=10000000": "tasks.batch_size: 10000000 options at once do not fit on any device; give at most 1000000, or auto",
    # intervals
    "analyze statistics.confidence=0.05": "statistics.confidence: Input should be greater than or equal to 0.5; got 0.05",
    "analyze statistics.confidence=1": "statistics.confidence: Input should be less than 1; got 1",
    "analyze statistics.confidence=0.999 statistics.resamples=1000": "statistics.confidence: an interval of 0.999 needs at least 2000 resamples, one beyond each end, but there are 1000; give more",
    "eval confidence=0.9999": "confidence: an interval of 0.9999 needs at least 20000 resamples, one beyond each end, but there are 2000",
    "eval resamples=99": "resamples: Input should be greater than or equal to 100; got 99",
    "eval resamples=1000000000": "resamples: Input should be less than or equal to 100000",
    "eval power=0.05": "power: Input should be greater than or equal to 0.5; got 0.05",
    # layers, modules and what else is named once
    "analyze sae.layers=[]": "sae.layers: no layer given",
    "analyze sae.layers=[1,2,1]": "sae.layers: the layer 1 is named twice",
    "analyze sae.layers=[1,-2]": "sae.layers: [1, -2] is neither all nor a list of layer numbers, from 0 upwards, such as [0,5]",
    "analyze sae.layers=3": "sae.layers: 3 is neither all nor a list of layer numbers",
    "analyze sae.layers=[true]": "sae.layers: [True] is neither all nor a list",
    "analyze statistics.early=[]": "statistics.early: no layer given",
    "analyze statistics.deep=second": "statistics.deep: 'second' is neither third nor a list of layer numbers",
    "train peft.layers=[0,0]": "peft.layers: the layer 0 is named twice",
    "train peft.targets=[]": "peft.targets: no module given",
    "train peft.targets=[q_proj,q_proj]": "peft.targets: the module q_proj is named twice",
    "train loss.gap.layers={}": "loss.gap.layers: no layer given",
    "train loss.gap.layers={0:0.0}": "loss.gap.layers: the weight of layer 0 is 0.0",
    "train loss.gap.layers=[0,0]": "loss.gap.layers: the layer 0 is named twice",
    "analyze measures.parts=[similarity,similarity]": "measures.parts: the part similarity is named twice",
    "analyze measures.causal.doses=[]": "measures.causal.doses: no dose given",
    "analyze measures.causal.doses=[0.5,0.5]": "measures.causal.doses: the dose 0.5 is named twice",
    "analyze measures.causal.features={2:[7,7]}": "measures.causal.features: the latent 7 is named twice",
    "analyze measures.causal.features={2:[]}": "measures.causal.features: no latent given",
    "analyze measures.causal.features={2:7}": "measures.causal.features: 2: 7 is not a layer number with a list of latent numbers, such as {2: [17,40]}",
    "analyze sae.measuring.id={}": "sae.measuring.id: no id given",
    # words
    "analyze model.name=''": "model.name: it is blank; give a value, or leave the key as it is",
    "analyze 'model.name=\" \"'": "model.name: it is blank",
    "analyze model.revision=''": "model.revision: it is blank",
    "analyze model.revision=1234567": "model.revision: 1234567 is read as a number or a boolean; if it is a name, quote it inside",
    "analyze sae.measuring.release=''": "sae.measuring.release: it is blank",
    "train cache=''": "cache: it is blank",
    "analyze corpus=files corpus.path=''": "corpus.path: it is blank",
    "analyze scores=['']": "scores: it is blank",
    "eval adapter=''": "adapter: it is blank",
    "analyze device=gpu": "device: 'gpu' is unknown; use auto, cpu, cuda or cuda:N",
    "analyze device=cuda:-1": "device: 'cuda:-1' is unknown; use auto, cpu, cuda or cuda:N",
    "analyze device=mps": "device: 'mps' is unknown",
}  # fmt: skip


@pytest.mark.parametrize("command", REFUSED)
def test_refused(command: str) -> None:
    job, _, rest = command.partition(" ")
    overrides = [rest.strip("'")] if rest.startswith("'") else rest.split(" ")
    with pytest.raises(UserError) as refused:
        judged(job, *overrides)
    assert any(line.startswith(REFUSED[command]) for line in str(refused.value).splitlines()), str(refused.value)
    assert len(str(refused.value).splitlines()) == 1, "one problem, one line"


@pytest.mark.parametrize(
    "command",
    [
        "train loss.gap.weight=1e-6", "train loss.gap.weight=1000000", "train loss.retention.kl=0", "train trainer.steps=1e3", "train optim.warmup_steps=200",
        "train seed=4294967295", "train loss.gap.layers={0:1,2:0.5}", "train peft.targets=q_proj", "train peft.targets=[q_proj]",
        "analyze statistics.resamples=100", "analyze statistics.resamples=100 statistics.confidence=0.98", "analyze sae.layers=[2,0]",
        "analyze statistics.resamples=2000 statistics.confidence=0.999", "analyze measures.causal.doses=[-1,0,1]", "analyze device=cuda:3",
        "analyze shard=4/4", "analyze statistics.early=[0,1]", "eval resamples=100", "eval adapter=null", "eval tasks.batch_size=8",
    ],
)  # fmt: skip
def test_taken(command: str) -> None:
    job, *overrides = command.split(" ")
    judged(job, *overrides)


def test_a_negative_zero_is_a_zero() -> None:
    assert str(judged("train", "loss.retention.kl=-0.0").loss.retention.kl) == "0.0"
    assert str(judged("analyze", "measures.causal.doses=[-0.0]").measures.causal.doses) == "(0.0,)"
    with pytest.raises(UserError, match=r"measures\.causal\.doses: the dose 0\.0 is named twice"):
        judged("analyze", "measures.causal.doses=[-0.0,0.0]")


def test_bytes_of_a_command_line_that_are_no_text_are_refused() -> None:
    for value in ("a\udcffb", "a\nb", "a\x00b"):
        for key in ("model.name", "sae.measuring.release"):
            with pytest.raises(UserError, match="contains characters that cannot be written"):
                judged("analyze", f'{key}="{value}"')


def test_names_of_own_benchmarks_make_files_in_the_run_folder() -> None:
    plain: Any = OmegaConf.to_container(composed("eval"), resolve=True)
    own = {"kind": "items", "path": "q_{lang}.jsonl", "split_by": None}
    for name in ("../x", "a/b", ".hidden", "", "a b"):
        with pytest.raises(UserError, match=r"tasks\.own"):
            validate(SCHEMAS["eval"], plain | {"tasks": plain["tasks"] | {"own": {name: own}}})
    validate(SCHEMAS["eval"], plain | {"tasks": plain["tasks"] | {"own": {"my-quiz_2": own}}})


def test_a_saved_configuration_is_taken_again() -> None:
    """As `resume=` reads it: lists for tuples, text for numbers as keys."""
    for job, overrides in (
        ("train", ["loss.gap.layers={0:1.0,2:0.5}"]),
        ("analyze", ["measures=full", "measures.causal.features={2:[1,3]}"]),
        ("eval", []),
    ):
        config = judged(job, *overrides)
        assert SCHEMAS[job].model_validate(json.loads(json.dumps(config.model_dump(mode="json")))).model_dump() == config.model_dump()


def numbers(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every field that may be a number, with the bounds on it."""
    for name, field in model.model_fields.items():
        yield from _of(field.annotation, field, f"{path}{name}")


def _of(annotation: Any, field: FieldInfo | None, path: str) -> Iterator[tuple[str, list[Any]]]:
    metadata = list(field.metadata) if field else []
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += [part for one in more for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    if annotation in (int, float):
        yield path, metadata
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from numbers(annotation, f"{path}.")
    else:
        for part in get_args(annotation):
            if get_origin(part) is not None or isinstance(part, type):
                # Bounds on the whole, or a function that judges it, stand for those of its parts.
                yield from ((place, [*metadata, *inner]) for place, inner in _of(part, None, path))


@pytest.mark.parametrize("job", SCHEMAS)
def test_every_number_has_a_lower_and_an_upper_bound_and_none_may_be_infinite(job: str) -> None:
    found = dict(numbers(SCHEMAS[job]))
    assert len(found) > 15
    unbounded = []
    for path, metadata in found.items():
        ends = {kind for kind in (Ge, Gt, Le, Lt) for part in metadata if isinstance(part, kind)}
        judged_by_a_function = any("function" in type(part).__name__.lower() or type(part).__name__.endswith("Validator") for part in metadata)
        if not (ends & {Ge, Gt} and ends & {Le, Lt}) and not (judged_by_a_function and ("layers" in path or path.split(".")[-1] in OF_A_FUNCTION)):
            unbounded.append(path)
    assert unbounded == [], "give these fields a kind of value of lingact.config.limits, or bounds"
    assert all(section.model_config.get("allow_inf_nan") is False for section in (SCHEMAS[job],))


OF_A_FUNCTION = {
    "weight", "kl", "lm", "activation", "norm", "fit", "target_kl", "target_lm",  # 0 or a factor
    "early", "deep", "features", "batch_size", "gap",
}  # fmt: skip
"""Fields whose bounds a function of `limits` holds."""


def test_the_door_is_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main("train", CONF, ["lang=ml", "loss.gap.weight=inf", "statistics.resamples=1", "optim.lr=nan", "tracking=none"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.strip().partition(":")[0] for line in told[1:]] == ["statistics.resamples", "loss.gap.weight", "optim.lr"]
    assert list(tmp_path.iterdir()) == []
