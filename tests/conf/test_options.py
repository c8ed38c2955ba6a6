"""Every shipped option, experiment and sweep composes and is valid."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_class

from lingact.config.base import ConfigSection
from lingact.config.jobs import SCHEMAS
from lingact.config.training import GapLoss, LossConfig
from lingact.config.validation import validate_config
from tests.helpers.paths import CONF

JOBS = sorted(SCHEMAS)
# `sweep` holds files for wandb, not options of Hydra's; those of `hydra` are of its own groups.
OPTIONS = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml") if path.parent.name != "sweep")
LAUNCHERS = sorted(path.stem for path in CONF.glob("hydra/launcher/*.yaml"))
SWEEPS = sorted(CONF.glob("sweep/*.yaml"))

NEEDED = {
    "corpus/files": ("corpus.path=somewhere",),
    "corpus/opus_100": ("languages.high=[]", "languages.low=[ml]"),
    "corpus/tatoeba": ("languages.high=[]", "languages.low=[ml]"),
    "sae/own": ("sae.measuring.release=somewhere",),
    "text/hub": ("text.languages=[en,ml]",),
    "tasks/files": ("tasks.own.mine.path='quiz_{lang}.jsonl'",),
    "tasks/lm_eval": ("tasks.own.mine.folder=somewhere", "tasks.own.mine.task='quiz_{lang}'"),
}
"""What an option cannot do without."""


def composed(job: str, *overrides: str) -> ConfigSection:
    """The judged configuration of a job."""
    needed = {"train": ["lang=ml"], "saes": [] if "text=hub" in overrides else ["text.path=somewhere"]}.get(job, [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate_config(SCHEMAS[job], compose(job, overrides=[*needed, *overrides]))


def groups_of(job: str) -> set[str]:
    """The groups in a job's defaults list."""
    defaults = yaml.safe_load((CONF / f"{job}.yaml").read_text())["defaults"]
    return {key.partition("@")[0] for entry in defaults if isinstance(entry, dict) for key in entry if not key.startswith("override")}


def test_finds_what_it_should_check() -> None:
    assert len(OPTIONS) >= 20
    assert len(SWEEPS) >= 1
    assert LAUNCHERS == ["parallel", "ray_cluster", "slurm", "slurm_trial"]
    assert {str(option.parent) for option in OPTIONS} == set().union(*map(groups_of, JOBS))


@pytest.mark.parametrize("job", JOBS)
def test_defaults(job: str) -> None:
    config = composed(job)
    assert config.seed == 0
    assert Path(config.model.name).is_absolute()


@pytest.mark.parametrize(("job", "option"), [(job, option) for job in JOBS for option in OPTIONS if str(option.parent) in groups_of(job)], ids=str)
def test_option(job: str, option: Path) -> None:
    composed(job, f"{option.parent}={option.name}", *NEEDED.get(str(option), ()))


@pytest.mark.parametrize("option", [option.name for option in OPTIONS if str(option.parent) == "corpus"])
def test_every_corpus_may_be_trained_on_apart_from_the_measured_one(option: str) -> None:
    config = composed("train", f"corpus@train_corpus={option}", *(["train_corpus.path=somewhere"] if option == "files" else []))
    assert config.corpus == composed("train").corpus
    alone = composed(
        "train", "languages.high=[]", "languages.low=[ml]", f"corpus={option}", *(["corpus.path=somewhere"] if option == "files" else [])
    )
    assert config.train_corpus == alone.corpus


def test_every_value_of_the_schema_stands_in_the_files() -> None:
    """What a user may override can be read in conf/."""
    for job in JOBS:
        config = composed(job)
        assert config.model_fields_set == set(SCHEMAS[job].model_fields)
        for name in config.model_fields_set:
            section = getattr(config, name)
            if isinstance(section, ConfigSection):
                assert section.model_fields_set == set(type(section).model_fields), f"{job}: {name}"


def test_experiment_is_the_presets() -> None:
    experiment = composed("train", "experiment=gemma2_2b")
    presets = composed("train", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus")
    assert (experiment.model, experiment.sae, experiment.corpus) == (presets.model, presets.sae, presets.corpus)
    assert experiment.sae.measuring.id.format(layer=12) == "layer_12/width_16k/canonical"


def test_the_comparison_runs_every_objective_and_control() -> None:
    compared = yaml.safe_load((CONF / "experiment" / "method_comparison.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert compared["seed"] == "0,1,2"
    chosen = [composed("train", f"loss={name}").loss for name in compared["loss"].split(",")]
    assert {loss.gap.objective for loss in chosen} == set(get_args(GapLoss.model_fields["objective"].annotation))
    assert {loss.control for loss in chosen} == set(get_args(LossConfig.model_fields["control"].annotation))
    assert {loss.gap.side for loss in chosen} == {"two_sided", "one_sided"}
    assert {loss.gap.gradient for loss in chosen} == {"jumprelu", "straight_through"}
    assert len({loss.model_dump_json() for loss in chosen}) == len(chosen), "no two are the same"


def test_layer_weights_survive_the_run_folder() -> None:
    """As `resume=` reads them back."""
    loss = composed("train", "loss.gap.layers={2: 1.0, 0: 0.5}").loss
    assert loss.gap.layers == {2: 1.0, 0: 0.5}
    assert LossConfig.model_validate(yaml.safe_load(yaml.safe_dump(loss.model_dump(mode="json")))) == loss


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "ray_cluster"])  # whose plugin is not installed with the tests
def test_launcher(launcher: str) -> None:
    """The plugin is there and knows every key."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("train", overrides=["lang=ml", f"hydra/launcher={launcher}"], return_hydra_config=True).hydra.launcher
    written = yaml.safe_load((CONF / "hydra" / "launcher" / f"{launcher}.yaml").read_text())
    assert {key: found[key] for key in written if key != "defaults"} == {key: value for key, value in written.items() if key != "defaults"}
    assert get_class(found["_target_"])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value of every parameter composes, given as the agent gives it: through the file's own command."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    monkeypatch.setenv("WANDB_RUN_ID", "xyz")
    sweep = yaml.safe_load(path.read_text())
    job = sweep["program"].removesuffix(".py")
    assert (CONF.parent / sweep["program"]).is_file()
    assert sweep["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["metric"]["name"] == "objective"
    for key, parameter in sweep["parameters"].items():
        for value in parameter["values"]:
            config = composed(job, *sweep["command"][3:-1], f"{key}={value}")
            found = config
            for part in key.split("."):
                found = getattr(found, part)
            assert found in (value, (value,))
            assert config.tracking.mode == "online"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = compose(job, overrides=["lang=ml", *sweep["command"][3:-1]], return_hydra_config=True).hydra.run
    assert run.dir == "outputs/wandb_sweeps/abc/xyz"


@pytest.mark.parametrize(("text", "codes"), [("lang=ml", ("ml",)), ("lang=[ml,hi]", ("ml", "hi")), ("lang=['ml', 'hi']", ("ml", "hi"))])
def test_lang_is_one_or_several(text: str, codes: tuple[str, ...]) -> None:
    assert composed("train", text).lang == codes
