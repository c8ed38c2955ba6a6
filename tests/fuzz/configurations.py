# ruff: noqa: RUF001 (characters that look like others are what is tried)
"""Generated command lines: right ones that are small, and what a hand may write wrongly into them."""

import itertools
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from lingact.config.data import FilesCorpus
from lingact.config.jobs import SCHEMAS
from lingact.config.tasks import OwnItems
from lingact.config.training import LoraAdapter

SENTENCES = {
    "en": ("A dog.", "The sky is blue.", "Two and three.", "She sings.", "We go on Monday.", "Bread.", "It rained.", "A red car.", "Cold water", "An old man.", "Yes!", "Who?"),
    "ml": ("ഒരു നായ.", "ആകാശം നീല.", "രണ്ടും മൂന്നും.", "അവൾ പാടുന്നു.", "തിങ്കളാഴ്ച.", "അപ്പം.", "മഴ.", "ചുവപ്പ്.", "വെള്ളം", "വൃദ്ധൻ.", "അതെ!", "ആര്?"),
    "hi": ("एक कुत्ता।", "आसमान।", "दो और तीन।", "वह गाती है।", "सोमवार।", "रोटी।", "बारिश।", "लाल गाड़ी।", "ठंडा पानी", "बूढ़ा।", "हाँ!", "कौन?"),
}  # fmt: skip
JOBS = ("train", "analyze", "eval")  # those that read aligned text
FILES = ("corpus=files", "corpus.path=text.jsonl", "languages.high=[]", "languages.low=[ml]", "tracking=none")
ONE_LAYER = ("sae.layers=[0]", "sae.heldout=null", "statistics.resamples=100")
SMALL: dict[str, tuple[str, ...]] = {
    "train": ("lang=ml", *FILES, *ONE_LAYER, "cache=null", "trainer.steps=1", "trainer.sentences=2", "optim.warmup_steps=0", "loss.warm_up=0"),
    "analyze": (*FILES, *ONE_LAYER),
    "eval": (*FILES, "tasks.benchmarks=[micro_arc]", "tasks.limit=2", "resamples=100", "cache=null", "text_split=all"),
}
"""What makes a job take a few seconds."""
LEAST: dict[str, tuple[str, ...]] = {"train": ("lang=ml", *FILES[:4]), "analyze": FILES[:4], "eval": FILES[:4]}
"""What a job needs at the door."""


@dataclass(frozen=True)
class Command:
    """A job and its arguments, without those that make it small."""

    job: str
    shards: tuple[tuple[str, ...], ...]
    """Arguments that belong together."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of all shards."""
        return tuple(itertools.chain(*self.shards))

    @property
    def whole(self) -> list[str]:
        """All arguments: the small ones first, so that the generated ones win; of a run that goes on only its own."""
        return self.after(SMALL)

    def after(self, before: dict[str, tuple[str, ...]]) -> list[str]:
        """All arguments, behind those that all commands of the job have."""
        alone = any(text.startswith("resume") for text in self.arguments)
        return [*(() if alone else before[self.job]), *self.arguments]


# --- keys ------------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A value in a schema."""

    path: str
    right: tuple[str, ...]
    """Values that its type allows and that keep a run small, as they are written."""
    optional: bool


_PREFERRED = (FilesCorpus, LoraAdapter, OwnItems)
_LARGE = {"nodes": ("1",), "devices": ("1",), "resamples": ("100", "101", "150"), "r": ("1", "2", "8"), "batch_tokens": ("64", "512", "4096")}
_LARGE |= {"context": ("16", "512"), "workers": ("0", "1"), "steps": ("1", "2"), "sentences": ("2", "3", "10", "12"), "limit": ("1", "3")}
"""Numbers that must not be just any."""
_SKIPPED = {"name", "revision", "dataset", "plan", "trust_remote_code", "path", "folder", "task", "release", "id", "width", "kind", "device"}
"""Keys whose right values are names of things, which are tried by hand below."""


def keys(job: str) -> list[Key]:
    """All values of a job's schema, as deep as its sections go."""
    return list(_keys(SCHEMAS[job], ""))


def _keys(schema: type[BaseModel], before: str) -> Iterator[Key]:
    for name, field in schema.model_fields.items():
        path = before + name
        sections = [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        if sections:
            chosen = next((section for section in sections if section in _PREFERRED), sections[0])
            yield Key(path, (), optional=type(None) in _parts(field.annotation))
            yield from _keys(chosen, f"{path}.")
        else:
            yield Key(path, tuple(_right(name, field.annotation)), optional=type(None) in _parts(field.annotation))


def _parts(annotation: Any) -> list[Any]:
    """The branches of a union."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) is types.UnionType:
        return [part for branch in get_args(annotation) for part in _parts(branch)]
    return [annotation]


def _right(name: str, annotation: Any) -> Iterator[str]:
    if name in _SKIPPED:
        return
    if name in _LARGE:
        yield from _LARGE[name]
        return
    for part in _parts(annotation):
        origin, arguments = get_origin(part), get_args(part)
        if part is type(None):
            yield "null"
        elif origin is Literal:
            yield from (json.dumps(value) if isinstance(value, bool) else str(value) for value in arguments)
        elif part is bool:
            yield from ("true", "false")
        elif part is int:
            yield from ("0", "1", "2", "3")
        elif part is float:
            yield from ("0", "0.5", "1", "0.05", "2.5e-3")
        elif origin is tuple:
            yield from ("[]", *(f"[{value}]" for value in _right("", arguments[0])))
        elif origin is dict:
            yield "{}"


# --- values and names that are wrong, or only look it ----------------------------------------------------------------------------------------------

VALUES = (
    "", "null", "~", "None", "true", "False", "yes", "no", "nan", "inf", "-inf", ".nan", "1e999", "-1", "0", "-0.0", "1.0", "1.5", "-1e-9", "1e-320",
    "1e308", "1e400", "2147483648", "9223372036854775808", "100000000000000000000000000", "9" * 400, "9" * 5000, "1_000", "0x10", "0o17", "1e3", "1.", ".5",
    "'1'", '"2"', "' '", "''", '""', "abc", "ünïcödé", "'മലയാളം'", "٣", "²", "१२", "１２", "½", "∞", "[]", "[1,2]", "[[]]", "[null]", "[nan]", "[1,1]", "['']",
    "{}", "{a:1}", "{1:2}", "{0:1}", "{a:{b:c}}", "{null:1}", "{1.5:2}", "{nan:1}", "[{}]", "'${seed}'", "${seed}", "${nowhere}", "${oc.env:HOME}",
    "${oc.env:NOT_SET}", "${asset:nowhere}", "${asset:microworld/model}", "${now:%Y}", "${hydra:job.num}", "${", "'${'", "\\${seed}", "???", "'???'",
    "'a=b'", "'a,b'", "a=b", "a b", "a:b", "a/b", "'a\nb'", "'a\tb'", "'a\x1b[31mb'", "'a\x7fb'", "'a\u2028b'", "'a\u202eb'", "'a\ufeffb'", "'a\u0301'", "\U0001f34e",
    "'\U0010ffff'", "1,2", "range(3)", "range(1,3)", "choice(a,b)", "interval(0,1)", "sort(2,1)", "glob(*)", "shuffle(1,2)", "int(3.7)", "float(abc)",
    "str(3)", "int(null)", "bool(maybe)", 'json_str("[1]")', "extend_list(1)", "tag(a,1,2)", "(", "]", "{", "'", '"', "\\", "a\\", "%s", "{0}", "$HOME",
    "~/text.jsonl", "../text.jsonl", "x" * 300, "'" + "long " * 2000 + "'", "2026-11-26", "12:30:45", "!!python/object:os.system", "&a", "*a", "|", ">", "#", "a#b", "@", "a@b", "!", "-", "--", "=", "==",
)  # fmt: skip
PATHS = (
    "nowhere.jsonl", "text.jsonl", "./text.jsonl", "text.csv", "text.tsv", "text.parquet", "folder", "folder/", "'with space.jsonl'", "'a=b.jsonl'", "'a,b.jsonl'",
    '"it\'s.jsonl"', "'say \"x\".jsonl'", "'new\nline.jsonl'", "'ünï—മല.jsonl'", "'{lang}.jsonl'", "'$HOME.jsonl'", "link.jsonl", "dangling.jsonl", "loop.jsonl",
    "a_folder.jsonl", "empty.jsonl", ".", "..", "/", "''", "' '", "~", "/dev/null", "/proc/self/environ", "/nowhere/x", "text.jsonl/x", "outputs", "'\x00'",
    "UPPER.JSONL", "text", "text.jsonl.gz", "notes.txt", "scores.csv", "run", "run/config.yaml", "cut_run", "x" * 300, "a/" * 200 + "b", "file://text.jsonl",
    "'quiz_{lang}.jsonl'", "'{lang}'", "secret.jsonl", "'tab\there.jsonl'", "'back\\\\slash.jsonl'", "'%41.jsonl'", "'#1.jsonl'", "'-m.jsonl'", "'@x.jsonl'",
)  # fmt: skip
"""Of what lies in the folder (see `lay_out`) and what does not."""
RUNS = ("run", "cut_run", "other_run", "list_run", "binary_run", "nested_run", "eval_run", "no_manifest", "future_run", "odd_run", "folder", ".", "..", "/", "", "nowhere", "text.jsonl",
        "run/", "./run", "'run'", "link_run", "run/config.yaml", "~", "a=b", "[run]", "run,run", "null", "${seed}", "'my run'", "ünï", "x" * 300, "\x1b[31m", "'new\nrun'")  # fmt: skip
HYDRA = (
    "hydra.run.dir=.", "hydra.run.dir=..", "hydra.run.dir=folder", "hydra.run.dir=run", "hydra.run.dir=other_run", "hydra.run.dir=new", "hydra.run.dir='my new run'",
    "hydra.run.dir=text.jsonl", "hydra.run.dir=text.jsonl/x", "hydra.run.dir=''", "hydra.run.dir=null", "hydra.run.dir=[a]", "hydra.run.dir={a:b}", "hydra.run.dir=3",
    "hydra.run.dir='new\nline'", "hydra.run.dir='a=b'", "hydra.run.dir=\"it's\"", "hydra.run.dir='say \"x\"'", "hydra.run.dir='$HOME/x'", "hydra.run.dir='back\\\\slash'",
    "hydra.run.dir=link_run", "hydra.run.dir=dangling.jsonl", "hydra.run.dir=/dev/null", "hydra.run.dir=/proc/x", "hydra.run.dir=${seed}", "hydra.run.dir='${nope}'",
    "hydra.run.dir=outputs/${now:%Y}", "hydra.run.dir=${hydra.job.num}", "hydra.run.dir=???", "hydra.run.dir=" + "x" * 300, "hydra.run.dir='\x00'", "hydra.run.dir=ünï/മല",
    "hydra.run.dir=a,b", "hydra.run=x", "hydra.run.dir=~", "hydra=x", "hydra.job.chdir=true", "hydra.job.name=other", "hydra.job.name=../x", "hydra.job.name=null",
    "hydra.job.name='a b'", "hydra.job.num=3", "hydra.job.id=x", "hydra.job.config_name=train", "hydra.job.config_name=nope", "hydra.job.override_dirname=x", "hydra.output_subdir=.hydra", "hydra.output_subdir=..",
    "hydra.verbose=true", "hydra.verbose=lingact", "hydra.mode=RUN", "hydra.mode=MULTIRUN", "hydra.mode=NOPE", "hydra.mode=null", "hydra.mode=[]", "hydra.searchpath=[file://nowhere]",
    "hydra.searchpath=[pkg://nope]", "hydra.searchpath=3", "hydra/job_logging=default", "hydra/job_logging=stdout", "hydra/job_logging=nope", "hydra/hydra_logging=none", "hydra/output=default",
    "hydra/launcher=basic", "hydra/launcher=parallel", "hydra/sweeper=basic", "hydra/sweeper=nope", "hydra/help=default", "hydra/env=default", "hydra.callbacks=null", "hydra.callbacks={}",
    "~hydra.callbacks", "hydra.callbacks.jobs=null", "hydra.callbacks.jobs._target_=nope.Nope", "+hydra.callbacks.x={}", "hydra.launcher=null", "hydra.launcher._target_=nope.Nope", "hydra.sweeper.params={seed:'0,1'}",
    "hydra.sweeper.params={seed:0}", "hydra.sweeper.params={nope:'0,1'}", "hydra.sweeper.params=3", "hydra.sweeper.params=[a]", "+hydra.sweeper.params.seed='0,abc'", "hydra.sweeper.max_batch_size=0",
    "hydra.sweep.dir=.", "hydra.sweep.dir=folder", "hydra.sweep.subdir=.", "hydra.sweep.subdir=..", "hydra.sweep.subdir=same", "hydra.sweep.subdir=null", "hydra.sweep.subdir='${nope}'",
    "hydra.job.env_set={A:b}", "hydra.job.env_copy=[A]", "hydra.runtime.output_dir=folder", "hydra.runtime.cwd=/", "hydra.runtime=null", "hydra.overrides.task=[a]", "hydra.help.template=x", "hydra.nope=1", "~hydra", "hydra.version_base=1.1",
)  # fmt: skip
FLAGS = ("-m", "--multirun", "--cfg", "--cfg=job", "--cfg=nope", "--info=nope", "--resolve", "--nope", "-x", "--config-name=train", "--config-path=.", "-cn", "--package=x", "--experimental-rerun=x",
         "--list-saes", "--", "-", "", "=", "==", "=x", " ", "seed", "seed=", "seed =1", "seed= 1", " seed=1", "seed==1", "seed:1", "seed=1=2", "seed=1 lang=ml", "\n", "é", "@", "+", "++", "~", "++=1", "~=1",
         "seed=1,", ",", "a.b.c", "a..b=1", ".seed=1", "seed.=1", ".=1", "[0]=1", "seed[0]=1", "sae.layers[0]=1", "sae.layers.0=1", "sae[layers]=[0]", "corpus.splits.train.x=1", "seed@x=1", "SEED=1", "_target_=os.system",
         "+_target_=os.system", "__class__=1", "+model_fields=1", "+self=1", "+in=1", "ſeed=1", "seed\u200b=1", "se\u0065\u0301d=1")  # fmt: skip
GROUPS = (
    "model",
    "sae",
    "corpus",
    "languages",
    "measures",
    "tracking",
    "loss",
    "peft",
    "optim",
    "trainer",
    "experiment",
    "tasks",
    "corpus@train_corpus",
    "hydra/launcher",
    "nope",
    "sweep",
    "hydra",
)
OPTIONS = ("null", "nope", "[]", "[nope]", "../shared", "../model/gpt2", "/etc/passwd", "'/'", "''", "shared", "3", "true", "{a:b}", "a,b", "*", "glob(*)", "${seed}", "???", ".", "..", "micro world", "microworld.yaml",
           "Microworld", "files", "none", "microworld@x", "[microworld,microworld]", "'a\nb'", "x" * 300, "മല", "gpt2,nope")  # fmt: skip
TOGETHER: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (
        ("lang=[ml,hi]",), ("lang=[ml,hi]", "languages.low=[ml,hi]"), ("lang=en",), ("lang=[]",), ("lang=[ml,ml]",), ("lang=no",), ("lang=[no]",), ("lang=null",), ("lang='ml,hi'",), ("lang={ml:1}",), ("lang=ML",), ("lang=' ml'",),
        ("loss=gap_only", "loss.gap.weight=0"), ("loss.gap.weight=inf",), ("loss.gap.weight=nan",), ("loss.gap.stop_when_closed=true", "loss.gap.objective=contrastive"), ("loss.gap.layers=[99]",), ("loss.gap.layers=[1]",), ("loss.gap.layers={0:1.0}",),
        ("loss.gap.layers={0:inf}",), ("loss.gap.layers={}",), ("loss.gap.layers=[]",), ("loss.gap.layers=[0,0]",), ("loss.warm_up=1000000",), ("loss.retention.top=1",), ("loss.retention.top=10000000",), ("loss.retention.limit=0.1",),
        ("peft.layers=[99]",), ("peft.layers=[]",), ("peft.layers=[0]",), ("peft.targets=[nope]",), ("peft.targets=[]",), ("peft.targets=[q_proj]",), ("peft.targets=['']",), ("peft.r=100000",), ("peft=oft", "peft.block_size=7"), ("peft=oft",), ("peft=ia3", "peft.feedforward=[nope]"),
        ("peft=ia3",), ("peft=vera",), ("peft=loha",), ("peft=lokr",), ("peft=dora",), ("peft.init=pissa",), ("peft.dropout=0.999999",), ("peft.dropout=1",), ("peft.kind=vera",), ("peft.kind=nope",), ("peft={}",),
        ("optim.lr=1e30",), ("optim.lr=inf",), ("optim.lr=1e-320",), ("optim.weight_decay=1e10",), ("optim.warmup_steps=99",), ("trainer.sentences=1000",), ("trainer.micro_batch=1",), ("trainer.micro_batch=1000",), ("trainer.precision=bf16-mixed",),
        ("trainer.precision=16-mixed",), ("trainer.strategy=fsdp",), ("trainer.devices=100",), ("trainer.devices=2", "device=cuda:0"), ("trainer.gradient_clip=1e-30",), ("trainer.gradient_clip=inf",), ("trainer.checkpoint_every=1000000000000",),
        ("corpus@train_corpus=files", "train_corpus.path=text.csv"), ("corpus@train_corpus=files",), ("corpus@train_corpus=files", "train_corpus.path=text.jsonl"), ("train_corpus=files",), ("train_corpus={}",), ("train_corpus.path=x",),
        ("loss.control=wrong_language",), ("loss.control=shuffled_pairs",), ("loss.control=shuffled_pairs", "loss.gap.objective=profile"), ("loss.control=random_features", "loss.retention.fit=0"), ("loss=norm_only", "loss.gap.norm_matched=true"),
        ("cache=text.jsonl",), ("cache=.",), ("cache=new",), ("cache=''",), ("cache=/dev/null",), ("experiment=nope",), ("experiment=gemma2_2b",), ("split=dev",), ("split=train",),
    ),
    "analyze": (
        ("shard=1/2",), ("shard=2/2",), ("shard=5/4",), ("shard=0/0",), ("shard=1/1000000",), ("shard='1/2 '",), ("shard=[0,1]",), ("shard=[1,1]",), ("shard=½",), ("shard=1/2", "measures=full"), ("shard=１/２",),
        ("compare=[run,run]",), ("compare=[run]",), ("compare=[run,other_run,cut_run]",), ("compare=run",), ("compare=[nowhere,run]",), ("stats=[run]",), ("stats=run",), ("stats=[nowhere]",), ("stats=[run,run]",), ("stats=[folder]", "compare=[run,run]"),
        ("stats=['']",), ("stats=[null]",), ("scores=scores.csv",), ("scores=[scores.csv,scores.csv]",), ("scores=[nowhere.csv]",), ("scores=[folder]",), ("scores=text.jsonl",), ("scores=[run]",), ("scores=[eval_run]",), ("scores=[3]",),
        ("adapter=nowhere",), ("adapter=run",), ("adapter=folder",), ("adapter=text.jsonl",), ("adapter=''",), ("adapter=a/b/c:v1",), ("adapter=a/b/c",), ("adapter=3",), ("adapter=[run]",), ("adapter=hf://x",), ("adapter='a b'",), ("adapter=..",), ("adapter=cut_run",),
        ("measures.parts=[causal]",), ("measures.parts=[spliced]",), ("measures.parts=[similarity]",), ("measures.parts=[by_reference,language_model]",), ("measures.parts=[nope]",), ("measures.parts=[spliced,spliced]",), ("measures.gap=norm_matched",),
        ("measures.parts=[random_sae]",), ("measures.parts=[shuffled_labels]",), ("measures.parts=[features]",), ("measures.parts=[causal]", "measures.causal.features={0:[1]}"), ("measures.parts=[causal]", "measures.causal.features={0:[99999999]}"),
        ("measures.parts=[causal]", "measures.causal.features={99:[1]}"), ("measures.parts=[causal]", "measures.causal.features={0:[]}"), ("measures.parts=[causal]", "measures.causal.features={0:[1]}", "measures.causal.doses=[nan]"),
        ("measures.parts=[causal]", "measures.causal.features={0:[1]}", "measures.causal.mode=steer", "measures.causal.doses=[1e38]"), ("measures.top_k=100000",), ("measures.gap=top_k",), ("measures.gap=per_byte",),
        ("attribution=[folder,run]",), ("attribution=folder",), ("attribution=[[folder],[folder,run]]",), ("attribution=[[],[]]",), ("attribution=[loop.jsonl,text.jsonl]",), ("attribution=null",), ("attribution=[run,./run]",), ("attribution=[3,{a:b}]",),
        ("statistics.early=[99]",), ("statistics.early=[]",), ("statistics.early=[0]", "statistics.deep=[0]"), ("statistics.resamples=1",), ("statistics.resamples=1000000000000",), ("statistics.confidence=0.9999999999",), ("statistics.confidence=1e-300",),
        ("batch_tokens=1",), ("batch_tokens=1000000000000",), ("split=train", "corpus.splits={train:1,dev:0,heldout:0}"), ("split=dev",), ("corpus.max_sentences=1",), ("corpus.max_sentences=2",), ("languages.low=[]",), ("languages.low=[xx]",),
        ("languages.reference=ml", "languages.low=[en]"), ("languages.reference=ml",), ("languages.low=no",), ("languages.low=[false]",), ("languages.low=[es]",), ("sae.layers=[99]",), ("sae.layers=[]",), ("sae.layers=[0,0]",), ("sae.layers=all",), ("sae.layers=0",),
    ),
    "eval": (
        ("tasks.benchmarks=[]",), ("tasks.benchmarks=micro_arc",), ("tasks.benchmarks=[micro_arc,micro_arc]",), ("tasks.benchmarks=[nope]",), ("tasks.benchmarks=[belebele]",), ("tasks.limit=1000000000",), ("tasks.fewshot=1",), ("tasks.fewshot=1000",),
        ("tasks.batch_size=auto",), ("tasks.batch_size=1.0",), ("tasks.batch_size=0",), ("tasks.batch_size=1000000000000",), ("tasks.batch_size=AUTO",), ("tasks.missing=skip", "languages.low=[es]"), ("tasks.items=all",),
        ("tasks=files", "tasks.own.mine.path='quiz_{lang}.jsonl'"), ("tasks=files", "tasks.own.mine.path=quiz.jsonl"), ("tasks=files", "tasks.own.mine.path='{lang}'"), ("tasks=files", "tasks.own.mine.path='nowhere_{lang}.jsonl'"),
        ("tasks=files", "tasks.own.mine.path='quiz_{lang}.jsonl'", "tasks.own.mine.split_by=nope"), ("tasks=files", "tasks.own.mine.path='quiz_{lang}.jsonl'", "tasks.own.mine.kind=lm_eval"), ("tasks=files", "tasks.own=null"), ("tasks=files", "tasks.own={}"),
        ("tasks=files", "tasks.own={micro_arc:{kind:items,path:'quiz_{lang}.jsonl',split_by:null}}"), ("+tasks.own.all={kind:items,path:'quiz_{lang}.jsonl',split_by:null}",), ("+tasks.own.it's={kind:items,path:'quiz_{lang}.jsonl',split_by:null}",),
        ("+tasks.own.a/b={kind:items,path:'quiz_{lang}.jsonl',split_by:null}",), ("+tasks.own.x={kind:items,path:'quiz_{lang}.jsonl',split_by:null}",), ("+tasks.own={x:{kind:items}}",), ("tasks=lm_eval",), ("tasks=lm_eval", "tasks.own.mine.folder=folder", "tasks.own.mine.task='x_{lang}'"),
        ("adapter=nowhere",), ("adapter=run",), ("adapter=[run,run]",), ("adapter=[]",), ("adapter=['']",), ("adapter=[null]",), ("adapter=folder",), ("adapter=[a/b:c]",), ("adapter=cut_run",), ("adapter=a/b/c:v0",), ("adapter=.",), ("adapter=other_run",),
        ("text_split=null",), ("text_split=dev",), ("text_split=nope",), ("text_split=heldout", "corpus.splits={train:0.98,dev:0.01,heldout:0.01}"), ("contamination.words=2",), ("contamination.words=1000000",), ("contamination.share=0",), ("contamination.share=1e-300",), ("power=1",), ("power=0.999999999999",),
        ("confidence=0.5",), ("resamples=1",), ("resamples=1000000000000",), ("cache=text.jsonl",), ("cache=new",), ("cache=.",), ("languages.low=[]",), ("languages.low=[xx]",), ("corpus=opus_100", "languages.low=[ml,hi]"), ("sae=microworld",),
    ),
}  # fmt: skip
COMMON: tuple[tuple[str, ...], ...] = (
    ("model=nope",), ("model.name=nowhere",), ("model.name=nowhere/nothing",), ("model.name=folder",), ("model.name=text.jsonl",), ("model.name=''",), ("model.name=.",), ("model.name='a b'",), ("model.name=a/b/c",), ("model.name='nowhere/nothing'", "model.revision=main"), ("model.name=~/x",), ("model.name='\x00'",),
    ("model.name=broken_model",), ("model.revision=abc",), ("model.dtype=bfloat16",), ("model.dtype=float16",), ("model.dtype=float64",), ("model.attention=flash_attention_2",), ("model.attention=sdpa",), ("model.context=1",), ("model.context=2",), ("model.context=1000000",), ("model.bos=true",), ("model.bos=false",), ("model.bos=1",),
    ("model.training_shares={xx:1}",), ("model.training_shares={en:inf}",), ("model.training_shares={}",), ("model.training_shares={en:0}",), ("model.training_shares={no:1}",), ("model.training_shares={false:1}",), ("model.shape={}",), ("model.shape.layers=3",), ("model.shape=auto",),
    ("model={}",), ("model={name:x}",), ("~model",), ("model=gpt2",), ("model=null",), ("device=cuda",), ("device=cuda:99",), ("device=cpu",), ("device=mps",), ("device=''",), ("device=nope",), ("device=cuda:-1",), ("device=cpu:0",), ("device=cpu:5",), ("device=meta",), ("device='cuda: 0'",), ("device=0",), ("device=auto:1",),
    ("seed=9223372036854775808",), ("seed=4294967296",), ("seed=-1",), ("seed=1e3",), ("seed=0.0",), ("seed=true",), ("seed='1'",), ("plan=maybe",), ("plan=yes",), ("plan=1",), ("plan=[]",), ("plan=check",), ("~plan",), ("~seed",), ("+seed=1",), ("++seed=1",), ("seed=1", "seed=2"), ("seed=1", "~seed"), ("+new=1",), ("++new=1",), ("+new.key=1",),
    ("corpus.splits={train:0.5,dev:0.5,heldout:0.5}",), ("corpus.splits={train:nan,dev:0.5,heldout:0.5}",), ("corpus.splits=3",), ("corpus.splits={}",), ("corpus.kind=hub",), ("corpus.kind=nope",), ("corpus.kind=[]",), ("corpus.kind=null",), ("corpus={}",), ("corpus=null",), ("corpus={kind:files}",), ("corpus=opus_100",), ("corpus=flores_plus",), ("corpus=microworld", "corpus.path=text.jsonl"),
    ("tracking=wandb",), ("tracking.mode=online",), ("tracking=offline",), ("tracking=offline", "tracking.tags=[" + "x" * 70 + "]"), ("tracking=offline", "tracking.tags=['']"), ("tracking=offline", "tracking.project=''"), ("tracking=offline", "tracking.project='a/b'"), ("tracking=offline", "tracking.project=" + "x" * 200), ("tracking=offline", "tracking.project=null"),
    ("tracking=offline", "tracking.entity='a b'"), ("tracking=offline", "tracking.group=" + "x" * 200), ("tracking=offline", "tracking.tags=[a,a]"), ("tracking=offline", "tracking.tags=a"), ("tracking.tags=[1]",), ("tracking={}",), ("tracking=null",), ("tracking=3",), ("tracking.mode=dryrun",),
    ("-m", "seed=0,1"), ("-m", "seed=0,abc"), ("-m", "seed=0,0"), ("-m", "seed=range(0,2)"), ("-m", "seed="), ("-m", "seed=,"), ("-m", "seed=interval(0,1)"), ("-m", "nope=1,2"), ("-m", "model=microworld,nope"), ("-m", "seed=choice(0)"), ("-m", "seed=glob(*)"), ("-m", "model=glob(micro*)"), ("-m", "seed=sort(1,0)"), ("-m", "+x=1,2"), ("-m", "seed=0,1", "seed=2"),
    ("-m", "seed=0,1", "hydra.sweep.dir=new"), ("-m", "seed=0,1", "hydra.sweep.dir=folder"), ("-m", "seed=0,1", "hydra.sweep.dir=."), ("-m", "seed=0,1", "hydra.sweep.subdir=same"), ("-m", "seed=0,1", "hydra.sweep.subdir=.."), ("-m", "seed=0,1", "hydra.run.dir=x"), ("-m", "seed=0", "resume=run"), ("-m", "resume=run,other_run"), ("-m", "seed=1,2,", "tracking=none"), ("-m",),
    ("-m", "'seed'=0,1"), ("-m", "seed=0,'1'"), ("-m", "seed=0," + ",".join(["nan"] * 3)), ("seed=0,1",), ("resume=run", "seed=1"), ("resume=run", "resume=run"), ("resume=run", "seed=0"), ("resume=run", "nope=1"), ("resume=run", "hydra.run.dir=x"), ("resume=run", "model=gpt2"), ("resume=run", "~seed"), ("+resume=run",), ("resume", "run"), ("resume=run", "--cfg", "job"),
    ("--cfg", "job"), ("--cfg", "job", "nope=1"), ("--cfg", "job", "model=nope"), ("--cfg", "job", "seed=abc", "--resolve"), ("--cfg", "job", "seed=1=2"), ("--info", "all"), ("--help",), ("--help", "nope=1"), ("--hydra-help",), ("--list-saes",), ("--list-saes", "model=nope"), ("--version",),
    ("sae.measuring.id=layer",), ("sae.measuring.id='layer_{layer}_{x}'",), ("sae.measuring.id={0:layer_0}",), ("sae.measuring.id={0:nope}",), ("sae.measuring.id={1:layer_1}",), ("sae.measuring.id='{layer}'",), ("sae.measuring.id='../{layer}'",), ("sae.measuring.release=nowhere",), ("sae.measuring.release=folder",), ("sae.measuring.release=text.jsonl",), ("sae.measuring.release=''",), ("sae.measuring.release=.",), ("sae.measuring.release=a/b",),
    ("sae.measuring.release=gemma-scope-2b-pt-res",), ("sae.measuring.width=3",), ("sae.measuring.width=999999999999",), ("sae=gpt2_resid_post",), ("sae=nope",), ("sae.heldout=3",), ("sae.heldout={}",), ("sae={}",),
)  # fmt: skip


# --- where commands are given ----------------------------------------------------------------------------------------------------------------------


def lay_out(stage: Path, job: str, saved: dict[str, Any]) -> None:
    """A folder with what the commands name, and with things that must not be touched.

    Args:
        saved: the configuration of a small run of the job.
    """
    rows = [{"unit": f"d{i}"} | {code: texts[i] for code, texts in SENTENCES.items()} for i in range(12)]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    for name in (
        "text",
        "with space",
        "a=b",
        "a,b",
        "it's",
        'say "x"',
        "new\nline",
        "ünï—മല",
        "{lang}",
        "$HOME",
        "tab\there",
        "back\\slash",
        "%41",
        "#1",
        "-m",
        "@x",
    ):
        (stage / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
        (stage / f"text.{suffix}").write_text("\n".join(lines), encoding="utf-8")
    (stage / "empty.jsonl").touch()
    (stage / "notes.txt").write_text("Mine.\n", encoding="utf-8")
    (stage / ".bashrc.20240101").write_text("# mine\n", encoding="utf-8")
    codes = ("es", "it", "id", "hi", "ml")
    (stage / "scores.csv").write_text(
        "language,benchmark,score\n" + "".join(f"{code},quiz,0.{i}\n" for i, code in enumerate(codes)), encoding="utf-8"
    )
    for code in ("en", "ml"):
        quiz = [{"id": f"q{i}", "question": f"{code} {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(4)]
        (stage / f"quiz_{code}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in quiz), encoding="utf-8")
    for folder in ("folder/.config.1", "a_folder.jsonl", "outputs/mine", "broken_model", "nested_run/config.yaml"):
        (stage / folder).mkdir(parents=True)
    for code, texts in SENTENCES.items():
        (stage / "folder" / f"{code}.txt").write_text("".join(f"{each}\n" for each in texts), encoding="utf-8")
    (stage / "folder" / ".config.1" / "x").write_text("mine\n", encoding="utf-8")
    (stage / "outputs" / "mine" / ".keep.1").write_text("mine\n", encoding="utf-8")
    (stage / "broken_model" / "config.json").write_text("{", encoding="utf-8")
    (stage / "link.jsonl").symlink_to("text.jsonl")
    (stage / "dangling.jsonl").symlink_to("nothing.jsonl")
    (stage / "loop.jsonl").symlink_to("loop.jsonl")
    (stage / "link_run").symlink_to("run")
    plain = yaml.safe_dump(saved, allow_unicode=True)
    manifest = {"job": job, "status": "running", "identity": {}}
    runs: dict[str, dict[str, str | bytes]] = {
        "run": {"config.yaml": plain, "manifest.json": json.dumps(manifest | {"status": "complete"}), "summary.json": "{}"},
        "my run": {"config.yaml": plain, "manifest.json": json.dumps(manifest | {"status": "complete"}), "summary.json": "{}"},
        "other_run": {"config.yaml": yaml.safe_dump(saved | {"seed": 7}), "manifest.json": json.dumps(manifest)},
        "eval_run": {"config.yaml": plain, "manifest.json": json.dumps(manifest | {"job": "train" if job == "eval" else "eval"})},
        "cut_run": {"config.yaml": plain, "manifest.json": '{"job": "tr'},
        "odd_run": {"config.yaml": plain, "manifest.json": json.dumps(manifest | {"status": "complete"})},
        "no_manifest": {"config.yaml": plain},
        "future_run": {"config.yaml": yaml.safe_dump(saved | {"new": 1})},
        "list_run": {"config.yaml": "- a\n"},
        "binary_run": {"config.yaml": b"\xff\xfe\x00"},
    }
    for name, files in runs.items():
        (stage / name).mkdir()
        for file, content in files.items():
            (stage / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())


# --- strategies ------------------------------------------------------------------------------------------------------------------------------------


@st.composite
def near_misses(draw: st.DrawFn, key: str) -> str:
    """A key as it is not called."""
    place = draw(st.integers(0, len(key) - 1))
    swapped = key[:place] + key[place + 1 : place + 2] + key[place] + key[place + 2 :]
    parts = key.split(".")
    return draw(st.sampled_from((key[:place] + key[place + 1 :], swapped, key.upper(), f"{key}s", f"{key}.x", f"{key}.", f".{key}", key.replace(".", "/"), key.replace("_", "-"), f"x.{key}",
                                 ".".join([*parts[:-1], "x"]), parts[-1], f"{key[:place]}é{key[place:]}", f"{key} ", f"+{key}", f"++{key}", f"~{key}", f"+{key}.x", f"{key}[0]", f"{key}@x", f"@{key}", key.replace("e", "е"))))  # fmt: skip


@st.composite
def right(draw: st.DrawFn, job: str) -> tuple[str, ...]:
    """A few values that their types allow."""
    known = [
        key
        for key in keys(job)
        if key.right and not key.path.startswith(("corpus.splits", "measures.parts", "train_corpus", "tasks.own", "model.training"))
    ]
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique_by=lambda key: key.path))
    return tuple(f"{key.path}={draw(st.sampled_from(key.right))}" for key in chosen)


@st.composite
def wrong(draw: st.DrawFn, job: str) -> tuple[str, ...]:
    """One override that is odd."""
    path = draw(st.sampled_from([key.path for key in keys(job)]))
    there = ("corpus@train_corpus=files",) if path.startswith("train_corpus.") else ()
    kind = draw(st.sampled_from(("value", "value", "value", "value", "name", "name", "path", "hydra", "hydra", "flag", "group", "resume")))
    match kind:
        case "value":
            return (*there, f"{path}={draw(st.sampled_from(VALUES))}")
        case "name":
            return (f"{draw(near_misses(path))}={draw(st.sampled_from(('1', 'abc', 'null', '')))}",)
        case "path":
            named = [
                key.path
                for key in keys(job)
                if key.path.rpartition(".")[2] in ("path", "cache", "scores", "stats", "adapter", "release", "folder", "name")
            ]
            key = draw(st.sampled_from(("corpus.path", *named)))
            return (f"{key}={draw(st.sampled_from(PATHS))}",)
        case "hydra":
            return (draw(st.sampled_from(HYDRA)),)
        case "flag":
            return (draw(st.sampled_from(FLAGS)),)
        case "group":
            return (f"{draw(st.sampled_from(('', '', '', '+', '++', '~')))}{draw(st.sampled_from(GROUPS))}={draw(st.sampled_from(OPTIONS))}",)
        case _:
            return (f"resume={draw(st.sampled_from(RUNS))}",)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    """A command line of a job."""
    job = draw(st.sampled_from(JOBS))
    shards: list[tuple[str, ...]] = []
    for kind in draw(
        st.sampled_from(
            (("together",), ("together",), ("right",), ("wrong",), ("wrong",), ("wrong", "wrong"), ("right", "wrong"), ("together", "right"))
        )
    ):
        part = {"together": st.sampled_from((*TOGETHER[job], *COMMON)), "right": right(job), "wrong": wrong(job)}[kind]
        shards.append(draw(part))
    return Command(job, tuple(shards))
