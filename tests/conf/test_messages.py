"""A user's mistake ends in one readable message with all problems, exit code 2, and nothing written. UPDATE_GOLDEN=1 rewrites the messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lingact.cli import main as cli
from tests.helpers.paths import ROOT

GOLDEN = Path(__file__).parent / "golden"
FILES = "corpus=files corpus.path=corpus.jsonl"

MISTAKES = {
    "no_lang": f"train {FILES}",
    "empty_lang": f"train lang=[] {FILES}",
    "unknown_language": f"train lang=[ml,xx] {FILES}",
    "language_by_name": f"train lang=Malayalam {FILES}",
    "norwegian": f"train lang=no {FILES}",
    "reference_as_target": f"train lang=en {FILES}",
    "corpus_of_pairs": "train lang=ml corpus=opus_100",
    "train_corpus_of_pairs": f"train lang=[ml,hi] corpus@train_corpus=tatoeba {FILES}",
    "train_corpus_as_a_value": f"train lang=ml train_corpus=opus_100 {FILES}",
    "train_corpus_not_chosen": f"train lang=ml train_corpus.path=text.jsonl {FILES}",
    "unknown_train_corpus": f"train lang=ml corpus@train_corpus=opus {FILES}",
    "no_train_corpus_file": f"train lang=ml corpus@train_corpus=files train_corpus.path=text.jsonl {FILES}",
    "language_twice": f"train lang=[ml,ml] {FILES}",
    "language_not_studied": f"train lang=ml languages.low=[hi] {FILES}",
    "unknown_option": f"train lang=ml model=gema2_2b sae=gemma_scope {FILES}",
    "unknown_key": f"train lang=ml loss.gap.wieght=1 loss.gap.side=two_sided statistics.poolng=token {FILES}",
    "unknown_top_level_key": f"train lang=ml sede=1 {FILES}",
    "added_key": f"train lang=ml +loss.gap.sides=two_sided {FILES}",
    "removed_key": f"train lang=ml ~seed {FILES}",
    "wrong_type": f"train lang=ml seed=abc trainer.steps=0 {FILES}",
    "option_that_is_no_name": "analyze corpus=null model=3 +measures=null",
    "no_key": "analyze ~ = seed=1",
    "removal_of_a_part_of_hydra": "analyze ~hydra.run",
    "sweep_over_nothing": "analyze -m seed=range(0,0)",
    "shown_with_mistakes": "analyze --cfg job sede=1 model=nope",
    "parts_of_hydra_that_are_no_parts": "analyze hydra.sweeper.params={seed:0} hydra.searchpath=[file://nowhere] seed=1",
    "no_sweeper": "analyze hydra.sweeper=null",
    "no_launcher": "analyze -m seed=0,1 hydra.launcher=null",
    "completion_of_nothing": "analyze --shell-completion",
    "saes_of_no_model": "analyze --list-saes ~model",
    "saes_of_an_unresolved_model": "analyze --list-saes model.name=${nope}",
    "name_too_long_for_a_run": f"analyze hydra.run.dir={'x' * 300} {FILES}",
    "name_too_long_for_a_resumed_run": f"analyze resume={'x' * 300}",
    "name_too_long_for_a_corpus": f"analyze corpus=files corpus.path={'x' * 300}.jsonl",
    "copy_of_no_variable": "analyze hydra.job.env_copy=[LINGACT_NOT_SET]",
    "other_class_of_hydra": "analyze -m seed=0,1 hydra.launcher._target_=nope.Nope hydra.callbacks.jobs=null hydra/hydra_logging=none",
    "interval_without_a_sweeper": f"analyze -m top=1 seed=interval(0,1) {FILES}",
    "long_values": f"analyze seed={'9' * 5000} model.bos={'long' * 99} corpus=files corpus.path=3",
    "value_for_a_section": f"train lang=ml loss.gap=3 {FILES}",
    "not_a_choice": f"train lang=ml loss.gap.side=one-sided {FILES}",
    "wrong_split": "analyze split=held_out corpus=files corpus.path=corpus.jsonl",
    "shard_out_of_range": "analyze shard=5/4",
    "shard_with_parts": "analyze shard=2/4 measures=full",
    "compare_with_one_run": "analyze compare=tasks",
    "gap_that_is_not_measured": "analyze measures.gap=norm_matched",
    "causal_without_features": "analyze measures.parts=[causal]",
    "no_weight": f"train lang=ml loss=gap_only loss.gap.weight=0 {FILES}",
    "splits": f"train lang=ml corpus.splits.train=0.9 {FILES}",
    "sae_without_layer": f"train lang=ml sae.measuring.id=layer {FILES}",
    "several_values_without_multirun": f"train lang=ml,hi {FILES}",
    "grammar": f"train lang=ml model.name=a=b seed= {FILES} tracking.project={{",
    "no_corpus_path": "train lang=ml corpus=files",
    "no_corpus_file": "train lang=ml corpus=files corpus.path=nowhere.jsonl",
    "group_of_another_job": "eval peft=lora",
    "no_task_folder": "eval tasks=lm_eval tasks.own.mine.folder=nowhere tasks.own.mine.task='quiz_{lang}'",
    "no_task_path": "eval tasks=files",
    "path_without_lang": "eval tasks=files tasks.own.mine.path=quiz.jsonl",
    "unknown_benchmark": "eval tasks.benchmarks=[micro_arc,helaswag]",
    "no_benchmark": "eval tasks.benchmarks=[]",
    "batch_size_by_word": "eval tasks.batch_size=many tasks.limit=0",
    "wandb_without_key": f"train lang=ml tracking=wandb {FILES}",
    "folder_below_a_file": f"train lang=ml hydra.run.dir=corpus.jsonl/run {FILES}",
    "sweep_folder_below_a_file": f"train -m lang=ml,hi hydra.sweep.dir=corpus.jsonl/sweep {FILES}",
    "unknown_hydra_key": f"train lang=ml hydra.run.dri=x {FILES}",
    "everything_at_once": "train lang=[ml,xx] model=foo los.gap.weight=1 seed=abc tracking=wandb corpus=files hydra.run.dir=corpus.jsonl/run",
    "multirun": f"train -m lang=ml,xx seed=0,abc optim.lrr=1 {FILES}",
    "multirun_with_unknown_option": f"train -m lang=ml loss=gap_only,gap_onyl {FILES}",
    "launcher_not_installed": f"train -m lang=ml,hi hydra/launcher=ray_cluster {FILES}",
    "unknown_launcher": f"train -m lang=ml,hi hydra/launcher=slrum {FILES}",
    "processes_in_a_launcher": f"train -m lang=ml,hi hydra/launcher=parallel trainer.devices=2 {FILES}",
    "fewer_tasks_than_processes": "analyze -m seed=0,1 hydra/launcher=slurm devices=4 hydra.launcher.tasks_per_node=2",
    "a_device_and_several_processes": "eval device=cuda:1 devices=2",
    "resume_no_run_folder": "train resume=tasks",
    "resume_twice": "train -m resume=tasks,other",
    "unsupported_flag": "train --config-name tasks lang=ml",
    "no_folder_of_options": "train --config-dir nowhere lang=ml",
    "former_key": "analyze shard=2/4 piece=1/2",
    "former_section": "eval leakage.words=3",
}


def compare(name: str, message: str, place: Path) -> None:
    """The message is the golden one."""
    message = message.replace(str(place), "<here>").replace(str(ROOT), "<root>")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(message, encoding="utf-8")
    assert message == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MISTAKES)
def test_message(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, *arguments = MISTAKES[name].split()
    before = sorted(place.rglob("*"))
    assert cli.main(job, ROOT / "conf", arguments) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in message
    compare(name, message, place)
    assert sorted(place.rglob("*")) == before, "nothing is written on a mistake"


def test_what_cannot_be_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["corpus=files", "corpus.path='new\nline.jsonl'", "tracking.project='\x1b[31m'", "model.name='\u2028'", "resume=\udcff", "seed=1"]
    assert cli.main("analyze", ROOT / "conf", arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "analyze.py:"
    assert [line.partition(": contains")[0].strip() for line in lines[1:]] == [repr(text) for text in arguments[1:5]]


@pytest.mark.parametrize("name", ["everything_at_once", *(pytest.param(name, marks=pytest.mark.slow) for name in ("multirun", "no_task_folder"))])
def test_message_of_the_script(name: str, place: Path) -> None:
    job, *arguments = MISTAKES[name].split()
    before = sorted(place.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run((sys.executable, str(ROOT / f"{job}.py"), *arguments), capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    compare(name, done.stderr, place)
    assert sorted(place.rglob("*")) == before


def test_no_golden_file_without_its_mistake() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(MISTAKES)
