"""What the command line does around a job."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from lingact.cli import main as cli
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate_config
from lingact.errors import UserError
from lingact.files.atomic import write_json
from tests.helpers.paths import CONF, ROOT

from .conftest import CORPUS, Runs

Train = Callable[..., int]


def raises(error: BaseException) -> Callable[..., None]:
    def does(*_: object) -> None:
        raise error

    return does


def test_run_gets_its_configuration_and_a_folder(train: Train, runs: Runs, place: Path) -> None:
    assert train("lang=[ml,hi]", "loss.gap.weight=2") == 0
    [(config, folder)] = runs
    assert config.lang == ("ml", "hi")
    assert config.loss.gap.weight == 2
    assert folder.parent == place / "outputs" / "train"
    assert "=" not in str(folder.relative_to(place))
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "manifest.json", "summary.json"}, "Hydra leaves nothing of its own"


def test_two_runs_in_one_second_have_two_folders(train: Train, runs: Runs) -> None:
    assert [train("lang=ml") for _ in range(3)] == [0, 0, 0]
    assert len({folder for _, folder in runs}) == 3


def test_folder_with_a_quote_and_a_space(train: Train, runs: Runs, place: Path) -> None:
    assert train("lang=ml", 'hydra.run.dir="Zoe\'s run"') == 0
    assert runs[0][1] == place / "Zoe's run"


def test_shown_wherever_its_flag_stands(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--cfg", "job", "seed=7"], ["seed=7", "--cfg", "job"], ["--cfg=job", "seed=7"]):
        monkeypatch.setattr(sys, "argv", ["analyze.py", *arguments])
        assert cli.main("analyze", CONF, arguments) == 0
        assert "seed: 7" in capsys.readouterr().out.splitlines()


def test_help_about_hydra_beside_overrides(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["analyze.py", "--hydra-help", "corpus=files"])
    assert cli.main("analyze", CONF, sys.argv[1:]) == 0
    assert "--multirun" in capsys.readouterr().out


def test_sweep_over_options_by_a_pattern(train: Train, runs: Runs) -> None:
    assert train("-m", "lang=ml", "peft=glob(lo*)") == 0
    assert [config.peft.kind for config, _ in runs] == ["loha", "lokr", "lora"]


def test_multirun_is_one_group_and_one_table(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "lang=ml,hi", "seed=3", "hydra.sweep.dir=grid") == 0
    assert [(config.lang, config.tracking.group, folder) for config, folder in runs] == [
        (("ml",), "grid", place / "grid" / "0"),
        (("hi",), "grid", place / "grid" / "1"),
    ]
    with (place / "grid" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["lang"], row["seed"], row["status"], row["objective"], row["gap_closed/ml"]) for row in rows] == [
        ("ml", "3", "complete", "0.5", "0.75"),
        ("hi", "3", "complete", "0.5", ""),
    ]
    printed = capsys.readouterr().out
    assert "Gap closed of ml, hi" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_an_experiment_can_be_a_multirun(train: Train, runs: Runs, place: Path) -> None:
    chosen = ("experiment=method_comparison", "lang=ml", "loss=gap_and_retention,lm_only", "seed=0", "trainer.steps=2", "optim.warmup_steps=0")
    assert train(*chosen, "hydra.sweep.dir=grid") == 0
    assert [(config.loss.gap.weight, config.loss.target_lm, config.seed, config.trainer.steps) for config, _ in runs] == [(5, 0, 0, 2), (0, 1, 0, 2)]
    assert [folder for _, folder in runs] == [place / "grid" / "0", place / "grid" / "1"]
    assert {config.tracking.group for config, _ in runs} == {"grid"}
    assert {config.split for config, _ in runs} == {"dev"}, "an experiment sets values of the file that includes it"
    rows = list(csv.DictReader((place / "grid" / "sweep.csv").read_text().splitlines()))
    assert [(row["loss"], row["seed"], row["objective"]) for row in rows] == [("gap_and_retention", "0", "0.5"), ("lm_only", "0", "0.5")]


def test_an_experiment_gives_the_seeds_that_the_command_line_does_not(train: Train, runs: Runs) -> None:
    assert train("experiment=method_comparison", "lang=ml", "loss=profile") == 0
    assert [(config.loss.gap.objective, config.seed) for config, _ in runs] == [("profile", seed) for seed in (0, 1, 2)]


def test_every_job_of_an_experiment_is_judged_first(train: Train, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("experiment=method_comparison", "lang=ml", "loss=gap_and_retention,lm_onyl", "seed=0") == 2
    assert "loss: no option 'lm_onyl'; did you mean 'lm_only'?" in capsys.readouterr().err
    assert not runs


def test_an_experiment_can_be_run_as_one_job(train: Train, runs: Runs) -> None:
    assert train("experiment=method_comparison", "lang=ml", "hydra.mode=RUN", "split=heldout") == 0
    assert [config.split for config, _ in runs] == ["heldout"], "the command line wins over the experiment"


def test_multirun_group_can_be_named(train: Train, runs: Runs) -> None:
    assert train("-m", "lang=ml,hi", "tracking.group=mine") == 0
    assert {config.tracking.group for config, _ in runs} == {"mine"}


def test_multirun_goes_on_after_a_refused_job(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def does(config: object, _: Path) -> None:
        if config.lang == ("ml",):
            raise UserError("the corpus has no Malayalam")

    runs.does = does
    assert train("-m", "lang=ml,hi", "hydra.sweep.dir=grid") == 2
    assert capsys.readouterr().err == "train.py:\n  job 0: the corpus has no Malayalam\n"
    assert not (place / "grid" / "0").exists()
    assert [row["status"] for row in csv.DictReader((place / "grid" / "sweep.csv").read_text().splitlines())] == ["refused", "complete"]


def test_multirun_with_a_fault_still_has_its_table(train: Train, runs: Runs, place: Path) -> None:
    runs.does = raises(RuntimeError("planted"))
    with pytest.raises(RuntimeError, match="planted"):
        train("-m", "lang=ml,hi", "hydra.sweep.dir=grid")
    assert [row["status"] for row in csv.DictReader((place / "grid" / "sweep.csv").read_text().splitlines())] == ["failed", "failed"]


def test_mistake_found_inside_leaves_nothing(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.does = raises(UserError("layer 99 is out of range"))
    before = sorted(place.rglob("*"))
    assert train("lang=ml") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "train.py:\n  layer 99 is out of range\n")
    assert sorted(place.rglob("*")) == before


def test_mistake_found_inside_spares_what_was_there(train: Train, runs: Runs, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("keep")
    runs.does = raises(UserError("no"))
    assert train("lang=ml", "hydra.run.dir=mine") == 2
    assert (place / "mine" / "notes.txt").read_text() == "keep"


def test_mistake_found_late_keeps_results(train: Train, runs: Runs, place: Path) -> None:
    def does(_: object, folder: Path) -> None:
        (folder / "tables").mkdir()
        raise UserError("no")

    runs.does = does
    assert train("lang=ml", "hydra.run.dir=run") == 2
    assert (place / "run" / "tables").is_dir()


PLANTED = """
import sys, types
workflow = types.ModuleType("lingact.workflows.train")
def run(config, folder):
    {does}
workflow.run = run
sys.modules["lingact.workflows.train"] = workflow
from pathlib import Path
from lingact.cli.main import launch
launch("train", Path({conf!r}))
"""


def start(does: str, *arguments: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-c", PLANTED.format(does=does, conf=str(CONF)), *arguments, *CORPUS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_fault_of_ours_ends_in_1_with_its_traceback() -> None:
    process = start("raise RuntimeError('planted')", "lang=ml")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.splitlines()[0].startswith("Error executing job") or err.startswith("Traceback")
    assert "in run" in err
    assert err.splitlines()[-1] == "RuntimeError: planted"


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_sigterm_interrupts() -> None:
    process = start("print('ready', flush=True); import time; time.sleep(3000)", "lang=ml", "hydra.run.dir=run")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "\nInterrupted before anything was kept; give the same command again.\n"


def test_signal_handler_is_put_back(train: Train) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert train("lang=ml") == 0
    assert signal.getsignal(signal.SIGTERM) == before


# --- going on ---


@pytest.fixture
def interrupted(train: Train, runs: Runs, place: Path) -> Path:
    """A run folder of an interrupted run with seed 3."""
    runs.does = raises(KeyboardInterrupt())
    assert train("lang=ml", "seed=3", "hydra.run.dir=run") == 130
    runs.does = lambda _config, _folder: None
    return place / "run"


def resume(*arguments: str) -> int:
    return cli.main("train", CONF, ["resume=run", *arguments])


def test_resume_takes_the_saved_configuration(interrupted: Path, runs: Runs) -> None:
    assert resume() == 0
    assert runs[1][0] == runs[0][0]
    assert runs[1][1].absolute() == interrupted


@pytest.mark.parametrize("agreeing", ["seed=3", "lang=ml", "lang=[ml]", "loss=gap_and_retention", "tracking=offline", "corpus.max_sentences=null"])
@pytest.mark.usefixtures("interrupted")
def test_resume_with_agreeing_overrides(agreeing: str) -> None:
    assert resume(agreeing) == 0


@pytest.mark.parametrize(
    ("contradicting", "said"),
    [
        ("seed=0", "seed: 3 there, 0 here"),
        ("lang=hi", 'lang: ["ml"] there, ["hi"] here'),
        ("loss=gap_only", "loss.retention.kl: 1.0 there, 0.0 here"),
        ("experiment=gemma2_2b", "trainer.steps: 200 there, 500 here"),
        ("lang=xx", "unknown language 'xx'"),
        ("sede=3", "did you mean 'seed'"),
        ("hydra.run.dir=other", "cannot be combined with resume"),
    ],
)
@pytest.mark.usefixtures("interrupted")
def test_resume_refuses_contradictions(runs: Runs, capsys: pytest.CaptureFixture[str], contradicting: str, said: str) -> None:
    assert resume(contradicting) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(runs) == 1


@pytest.mark.usefixtures("interrupted")
def test_complete_run_says_so(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert [resume(), resume()] == [0, 0]
    assert len(runs) == 2
    assert capsys.readouterr().out == "'run' is complete; nothing to do.\n"


@pytest.mark.usefixtures("interrupted")
def test_resume_names_the_right_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("analyze", CONF, ["resume=run"]) == 2
    assert "python train.py resume=run" in capsys.readouterr().err


def test_resume_before_the_manifest_starts_over(interrupted: Path, runs: Runs) -> None:
    (interrupted / "manifest.json").unlink()
    assert resume() == 0
    assert len(runs) == 2


def test_resume_of_a_configuration_from_elsewhere(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = yaml.safe_load((interrupted / "config.yaml").read_text())
    (interrupted / "config.yaml").write_text(yaml.safe_dump({**saved, "old": 1}))
    assert resume() == 2
    assert "does not fit this version: old: unknown key" in capsys.readouterr().err


def test_a_run_from_before_keys_came_is_the_same_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("analyze", [*CORPUS, "measures.random_sae.draws=1"])
        saved = validate_config(SCHEMAS["analyze"], composed).model_dump(mode="json")
    del saved["statistics"]["block"], saved["measures"]["random_sae"]
    (place / "old").mkdir()
    (place / "old" / "config.yaml").write_text(yaml.safe_dump(saved))
    write_json(place / "old" / "manifest.json", {"job": "analyze", "status": "complete"})
    write_json(place / "old" / "summary.json", {})
    assert cli.main("analyze", CONF, ["resume=old"]) == 0
    assert capsys.readouterr().out == "'old' is complete; nothing to do.\n"
    assert cli.main("analyze", CONF, ["resume=old", "measures.random_sae.draws=5"]) == 2
    assert "measures.random_sae.draws: 1 there, 5 here" in capsys.readouterr().err


@pytest.mark.usefixtures("interrupted")
def test_same_command_same_folder_goes_on(train: Train, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    again = ("lang=ml", "seed=3", "hydra.run.dir=run")
    assert [train(*again), train(*again)] == [0, 0]
    assert len(runs) == 2
    assert "is complete; nothing to do" in capsys.readouterr().out


def test_other_configuration_same_folder_is_refused(interrupted: Path, train: Train, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    before = (interrupted / "config.yaml").read_text()
    assert train("lang=ml", "seed=4", "hydra.run.dir=run") == 2
    assert "hydra.run.dir: 'run' contains a run with another configuration (seed: 3 there, 4 here)" in capsys.readouterr().err
    assert (interrupted / "config.yaml").read_text() == before
    assert len(runs) == 1


def test_same_multirun_does_what_is_left(train: Train, runs: Runs, place: Path) -> None:
    command = ("-m", "lang=ml,hi", "hydra.sweep.dir=grid")
    assert train(*command) == 0
    (place / "grid" / "1" / "manifest.json").write_text(json.dumps({"job": "train", "status": "interrupted"}))
    assert train(*command) == 0
    assert [folder.name for _, folder in runs] == ["0", "1", "1"]


# --- speed ---


def test_heavy_libraries_wait_for_the_job() -> None:
    heavy = ["torch", "transformers", "sae_lens", "peft", "pytorch_lightning", "lm_eval", "wandb", "pandas", "numpy", "matplotlib", "datasets"]
    code = f"import sys, lingact.cli.main; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, env=environment, check=True).stdout == "[]\n"


@pytest.mark.parametrize("job", ["train", "analyze", "eval"])
def test_help_has_examples_and_groups(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    monkeypatch.setattr(sys, "argv", [f"{job}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.launch(job, CONF)
    assert ended.value.code in (0, None)
    text = capsys.readouterr().out
    assert f"python {job}.py" in text
    assert "languages: paper" in text
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "tasks"]


# --- the plan --------------------------------------------------------------------------------------------------------------------------------------

HERE = ("lang=ml", "languages.high=[]", "languages.low=[ml,hi]", "device=cpu")
TOO_MUCH = (*HERE, "experiment=gemma2_2b", "batch_tokens=100000000")


def test_only_the_plan_and_nothing_left_behind(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert train(*TOO_MUCH, "plan=true") == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert train(*HERE, "plan=true") == 0
    assert "it fits" in capsys.readouterr().out
    assert not runs
    assert sorted(place.rglob("*")) == before


def test_jobs_that_take_the_same_are_planned_once(train: Train, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", *HERE, "seed=0,1", "trainer.sentences=4,8", "plan=true") == 0
    assert capsys.readouterr().out.count("Memory, ") == 2
    assert not runs


def test_what_cannot_fit_is_refused_before_the_run(train: Train, runs: Runs, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert train(*TOO_MUCH) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "this run would need about" in said.err
    assert "batch_tokens=" in said.err
    assert not runs
    assert sorted(place.rglob("*")) == before


def test_who_knows_better_goes_on_and_resumes_so(train: Train, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.does = raises(KeyboardInterrupt())
    assert train(*TOO_MUCH, "plan=false", "hydra.run.dir=mine") == 130
    runs.does = Runs.does
    assert cli.main("train", CONF, ["resume=mine"]) == 2
    assert "this run would need about" in capsys.readouterr().err
    assert cli.main("train", CONF, ["resume=mine", "plan=true"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert cli.main("train", CONF, ["resume=mine", "plan=false"]) == 0
    assert [config.plan for config, _ in runs] == ["off", "off"]


def test_the_saes_for_a_model_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("analyze", CONF, ["--list-saes", "model=gemma2_2b"]) == 0
    told = capsys.readouterr().out
    assert "gemma-scope-2b-pt-res-canonical" in told
    assert "layer_{layer}/width_16k/canonical" in told
    assert "* stands for a number" in told
    (tmp_path / "own" / "layer_1").mkdir(parents=True)
    assert cli.main("train", CONF, ["--list-saes", "model=gpt2", f"sae={tmp_path / 'own'}"]) == 0
    assert "*" not in capsys.readouterr().out
    assert cli.main("analyze", CONF, ["--list-saes"]) == 2
    assert "has no suitable SAEs for" in capsys.readouterr().err
    assert cli.main("analyze", CONF, ["--list-saes", "model=gema2_2b"]) == 2
    assert "did you mean 'gemma2_2b'?" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"\xff"], ids=["gone", "empty", "a list", "no text"])
def test_a_complete_run_with_a_damaged_summary(train: Train, runs: Runs, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("lang=ml") == 0
    [(_, folder)] = runs
    path = folder / "summary.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert train(f"resume={folder}") == 2
    assert (
        f"'{path}' cannot be read: it is truncated or not a lingact file; put it back, or delete manifest.json and write" in capsys.readouterr().err
    )
