"""What the plan says about the time of a job, to be compared with what is measured."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from benchmarks.setting import BATCH_TOKENS, CONF, Setting, sound_items
from benchmarks.steps import SENTENCES
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate_config
from lingact.models.sizes import sizes_of
from lingact.planning.hardware import look
from lingact.planning.plan import make_plan

PASSES = {"analysis": ("analyze", "measuring"), "evaluation": ("eval", "questions"), "text": ("eval", "text"), "training": ("train", "training")}
"""Job of the benchmark -> job of lingact, and the pass of its plan."""


def seconds(name: str, setting: Setting) -> float:
    """By the plan, on this machine."""
    job, wanted = PASSES[name]
    config = _config(name, job, setting)
    plan, sizes = make_plan(config), sizes_of(config.model)
    assert plan is not None
    assert sizes is not None
    hardware = look("cpu", {"float32"}, (sizes[0].d_model, sizes[0].d_mlp))
    return sum(float(hardware.seconds(work, "float32")) for work in plan.passes if work.what == wanted)


def _config(name: str, job: str, setting: Setting) -> Any:
    chosen = [f"batch_tokens={BATCH_TOKENS}", "languages.high=[hi]", "languages.low=[ml]"]
    if setting.model is not None:
        chosen += [f"model.name={setting.model}", "model.revision=null", "model.attention=sdpa", "model.context=1024"]
    if setting.data is not None:
        chosen += ["corpus=files", f"corpus.path={setting.data}/flores_sib200.jsonl"]
    chosen.append(f"corpus.max_sentences={SENTENCES if name == 'training' else setting.sentences}")
    if name in ("analysis", "training"):
        chosen += ["sae.measuring.release=random", f"sae.measuring.width={setting.width}", "sae.heldout=null"]
    if name == "training":
        chosen += ["lang=ml", "languages.high=[]", "sae.layers=[0,1]", f"trainer.sentences={SENTENCES}", f"trainer.micro_batch={SENTENCES // 2}"]
        chosen.append("trainer.steps=1")
    if name == "evaluation":
        chosen += [f"tasks.limit={setting.items}", "text_split=null"]
        if setting.data is not None:
            own = {each: str(sound_items(Path(setting.data), each)) for each in ("arc", "mmlu")}
            chosen += ["tasks=files", "~tasks.own.mine"]
            chosen += [f"+tasks.own.{each}={{kind: items, path: '{path}', split_by: null}}" for each, path in own.items()]
    if name == "text":
        chosen.append("text_split=all")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate_config(SCHEMAS[job], compose(job, chosen))
