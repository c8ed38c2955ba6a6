"""What a run is said to take: sizes worked out by hand or counted on real objects, and what follows for this machine or another."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer

from lingact.activations.feature_stats import FeatureStats
from lingact.config.base import asset
from lingact.config.jobs import SCHEMAS
from lingact.config.validation import validate_config
from lingact.data.corpus import ParallelCorpus
from lingact.errors import UserError
from lingact.models.adapters import attach_adapter
from lingact.models.lm import find_blocks
from lingact.models.model_files import describe_model
from lingact.models.sae import Dictionaries
from lingact.models.sizes import ModelSizes, _built
from lingact.planning.hardware import CUDA, LIBRARIES, Hardware, look
from lingact.planning.inputs import Inputs, SaeSetSizes, Text, inputs_of
from lingact.planning.memory import Memory, Need, _saes, _statistics, adapter_weights, total
from lingact.planning.messages import begin, print_plan
from lingact.planning.plan import GB, Plan, advice, make_plan
from lingact.planning.tokenizing import TokenCounter
from lingact.planning.work import Pass
from tests.helpers.paths import CONF
from tests.helpers.tiers import first_of

EXPERIMENTS = ("gemma2_2b", "gemma2_2b_quick", "gemma3_1b", "gpt2", "llama31_8b")
SPEED = {"float32": 1e13, "bfloat16": 1e14}


def config_of(job: str, *overrides: str) -> Any:
    needed = {"train": ["lang=ml"], "saes": ["text.path=somewhere"]}.get(job, [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return validate_config(SCHEMAS[job], compose(job, overrides=[*needed, *overrides]))


def card(gigabytes: float, *, host: float = 64) -> Hardware:
    return Hardware(f"a {gigabytes} GB card", "cuda", gigabytes * GB, host * GB, SPEED)


def sizes(plan: Plan) -> dict[str, float]:
    """What -> bytes, by the first words."""
    return {need.what.split(":")[0].split(",")[0]: need.size for need in [*plan.memory.device, *plan.memory.host]}


# --- sizes -----------------------------------------------------------------------------------------------------------------------------------------


def test_gemma_2_with_gemma_scope_by_hand() -> None:
    found = make_plan(config_of("analyze", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus", "batch_tokens=1000"))
    assert found is not None
    known = sizes(found)
    assert known["model"] == 2 * 2_614_341_888
    # Encoder and decoder, bias, threshold and decoder norm of a latent; the decoder's bias.
    assert known["SAEs"] == 4 * 26 * (2 * 2304 * 65536 + 3 * 65536 + 2304), "the held-out ones come last"
    # Ten languages and a copy: three kinds of counters for both halves, eight bytes each; seven sums for each of 997 sentences; the residuals' sum.
    both = sum(48 * width + 56 * 997 + 8 * 2304 for width in (16384, 65536))
    assert known["statistics of 10 languages"] == 11 * 26 * both
    [residuals, latents] = found.memory.phases["measuring"]
    assert residuals.size == 1000 * 26 * 2304 * (2 + 4)
    assert latents.size == 1000 * 65536 * 20
    [measuring] = found.passes
    # FLORES+ has 997 sentences, of 200 bytes and four bytes a token by the guesses.
    assert measuring.tokens == 997 * 50 * 10
    assert measuring.single == measuring.tokens * 26 * 4 * 2304 * (16384 + 65536)


def test_text_that_is_here_is_counted(tmp_path: Path) -> None:
    (tmp_path / "two.tsv").write_text("en\tml\nabcd\tabcdefgh\nabc\tabcde\n")
    found = make_plan(config_of("analyze", "corpus=files", f"corpus.path={tmp_path / 'two.tsv'}", "languages.high=[]", "languages.low=[ml]"))
    assert found is not None
    tokenizer = Tokenizer.from_file(f"{asset('microworld/model')}/tokenizer.json")
    assert found.passes[0].tokens == sum(len(tokenizer.encode(text).ids) for text in ("abcd", "abc", "abcdefgh", "abcde"))
    assert found.text.startswith("2 sentences of about ")
    assert "counted by the model's tokenizer" in found.text
    elsewhere = make_plan(
        config_of(
            "analyze",
            "model=gemma2_2b",
            "sae=gemma_scope_2b_16k",
            "corpus=files",
            f"corpus.path={tmp_path / 'two.tsv'}",
            "languages.high=[]",
            "languages.low=[ml]",
        )
    )
    assert elsewhere is not None
    assert elsewhere.passes[0].tokens == (4 + 8 + 3 + 5) / 4, "without a tokenizer four bytes are a token"


def test_an_attribution_is_planned() -> None:
    """Two sets of 512 and 1,024 latents on six layers, read in five states after the norms."""
    sets = f"attribution=[{asset('microworld/sae')},{asset('microworld/sae_heldout')}]"
    plain, found = make_plan(config_of("analyze")), make_plan(config_of("analyze", sets))
    assert plain is not None
    assert found is not None
    measuring, attributing = found.passes
    assert [measuring] == plain.passes
    assert attributing.tokens == 2 * measuring.tokens
    assert attributing.model == pytest.approx(2 * measuring.model)
    assert attributing.single == pytest.approx(measuring.tokens * 6 * 5 * 2 * 128 * (512 + 1024))
    more = found.memory.device_peak - plain.memory.device_peak
    assert more == 4 * 6 * sum(2 * 128 * width + 3 * width + 128 for width in (512, 1024))
    count = len((Path(asset("microworld")) / "corpus.jsonl").read_text(encoding="utf-8").splitlines())
    assert sizes(found)["sums of the attribution in 10 languages"] == 11 * 6 * count * (3 + 5 * 2) * 8


def test_a_damaged_tokenizer_is_no_reason_to_plan_nothing(tmp_path: Path) -> None:
    shutil.copytree(asset("microworld/model"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    found = make_plan(config_of("analyze", f"model.name={tmp_path}/model"))
    assert found is not None
    assert "4 bytes a token (a guess)" in found.text


def test_questions_that_are_here_are_counted(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(f"{asset('microworld/model')}/tokenizer.json")
    items = [{"id": i, "question": "Which animal is this? " * (i + 1), "choices": ["a dog", "an old horse", "x"], "answer": 0} for i in range(4)]
    for code in ("en", "ml"):
        (tmp_path / f"quiz_{code}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    given = ("languages.high=[]", "languages.low=[ml]", "tasks=files", f"tasks.own.mine.path='{tmp_path}/quiz_{{lang}}.jsonl'", "text_split=null")
    found = make_plan(config_of("eval", *given, "adapter=somewhere"))
    assert found is not None
    prompts = 2 * 2 * sum(len(tokenizer.encode(item["question"]).ids) for item in items)  # two languages, base and adapter
    further = 16 * sum(len(tokenizer.encode(choice, add_special_tokens=False).ids) - 1 for choice in items[0]["choices"])
    [asked] = found.passes
    assert asked.tokens == prompts + further
    few = make_plan(config_of("eval", *given, "tasks.limit=1"))
    assert few is not None
    assert few.passes[0].tokens == pytest.approx(asked.tokens / 8)
    embedded = make_plan(config_of("eval", "text_split=null"))
    assert embedded is not None
    assert "micro_arc, micro_mmlu, micro_hellaswag: items counted by the model's tokenizer" in embedded.text
    hub = make_plan(config_of("eval", "tasks=belebele", "text_split=null"))
    assert hub is not None
    assert "belebele: 1000 items of 80 tokens with 4 options of 10 (a guess)" in hub.text
    assert hub.passes[0].tokens == 10 * 1000 * (80 + 4 * 9)


def test_statistics_and_saes_are_as_large_as_the_real_ones(corpus: ParallelCorpus, dictionaries: Dictionaries) -> None:
    stats = FeatureStats.empty({}, corpus, "es", {layer: sae.width for layer, sae in dictionaries.items()}, 32)
    real = sum(array.nbytes for array in stats.arrays().values())
    model = ModelSizes("gemma2", 0, 3, 32, 259, 4, 48, ((32, 32),), 0, 0, 0)
    inputs = Inputs(config_of("analyze"), model, "", Text(12, 9, ""), (SaeSetSizes("measuring", 48, ""),), 3, TokenCounter(None, 4.0))
    per_sentence = 5 * 8 * 12  # tokens, windows, bytes, words, partial, which do not grow with layers and are left out
    assert _statistics(inputs, 1, 1, 12).size == 2 * (real - per_sentence)
    real_saes = sum(p.numel() for d in dictionaries.values() for p in d.sae.parameters()) + sum(d.norms.numel() for d in dictionaries.values())
    assert _saes(inputs)[0].size == 4 * real_saes


@pytest.mark.parametrize("model", first_of(["gemma2_2b", "gpt2", "pythia_70m", "llama31_8b"]))
def test_adapters_have_the_weights_that_peft_gives_them(model: str) -> None:
    plain, dora = (inputs_of(config_of("train", f"model={model}", "lang=ml", f"peft={kind}", "sae.measuring.width=8")) for kind in ("lora", "dora"))
    assert plain is not None
    assert dora is not None
    described = describe_model(plain.config.model)
    assert described is not None
    built = _built(json.dumps(described.entries, sort_keys=True))
    assert built is not None
    real = copy.deepcopy(built[0])
    blocks = find_blocks(real, plain.model.layers)
    wrapped = attach_adapter(real.requires_grad_(False), blocks, plain.config.peft, 0)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert plain.model.layers * adapter_weights(plain) == trained
    outputs = sum(o for _, o in plain.model.linear)
    assert adapter_weights(dora) == adapter_weights(plain) + outputs, "DoRA has a magnitude for each output"


def test_what_is_trained_on_may_be_another_text(tmp_path: Path) -> None:
    (tmp_path / "one.tsv").write_text("en\tml\nabcd\tabcdefgh\nabc\tabcde\n")
    given = ("languages.high=[]", "languages.low=[ml]", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus")
    found = make_plan(config_of("train", *given, "corpus@train_corpus=files", f"train_corpus.path={tmp_path / 'one.tsv'}"))
    assert found is not None
    caching, training, measuring = found.passes
    # Five bytes a sentence and four a token; half of two sentences is trained on, in two languages, in 200 steps of 16 sentences. Before, it is read
    # once for next tokens and once for norms and fit.
    assert (caching.tokens, training.tokens) == (2 * 0.5 * 2 * 1.25 * 2, 200 * 16 * 1.25 * 2)
    assert measuring.tokens == pytest.approx((997 * 0.3 + 997 * 0.2) * 2 * 50)


def step_of(*overrides: str) -> float:
    found = make_plan(config_of("train", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus", *overrides))
    assert found is not None
    return sum(need.size for need in found.memory.phases["a training step"])


def test_parts_recomputing_and_fewer_layers_need_less() -> None:
    whole = step_of()
    assert step_of("trainer.micro_batch=4") < whole / 3
    assert step_of("trainer.micro_batch=16") < whole, "one language at a time"
    assert step_of("trainer.activation_checkpointing=true") < whole - 10 * GB
    assert step_of("loss.gap.layers=[0,1]") < whole - 2 * GB
    assert step_of("loss.gap.weight=0", "loss.retention.fit=0") < whole - 2 * GB, "no SAE is read"
    assert step_of("trainer.devices=2") == pytest.approx(whole / 2, rel=0.05), "but for a chunk of logits"


def test_every_part_of_an_analysis_has_its_passes() -> None:
    found = make_plan(config_of("analyze", "measures=full", "adapter=somewhere"))
    assert found is not None
    assert [work.what for work in found.passes] == [
        *("measuring", "reference statistics", "by the reference statistics", "random tokens and strongest contexts", "splicing", "intervening")
    ]
    core = make_plan(config_of("analyze"))
    assert core is not None
    # Base and adapter, with logits: over six layers of the toy model that is more than twice the work.
    assert found.passes[0].model > 2 * core.passes[0].model
    assert len([need for need in found.memory.device if need.what.startswith("SAEs")]) == 2 + 5, "each draw of random directions is a set of its own"


def test_random_saes_need_a_sample_of_residuals_in_host_memory() -> None:
    given = ("model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus")
    plain = make_plan(config_of("analyze", *given))
    found = make_plan(config_of("analyze", *given, "measures=full"))
    control = make_plan(config_of("train", *given, "loss.control=random_features", "loss.retention.fit=0", "loss.gap.layers=[3,4]"))
    assert plain is not None
    assert found is not None
    assert control is not None
    assert plain.memory.sampling == []
    assert total(found.memory.sampling) == 8192 * 26 * 2304 * 4
    assert total(control.memory.sampling) == 8192 * 2 * 2304 * 4
    small = Memory([], {"x": []}, [Need("statistics", 1e9)], sampling=[Need("sample", 2e9)])
    assert small.host_peak == 2e9, "the sample is dropped before statistics are taken"


def test_evaluation_needs_no_saes() -> None:
    found = make_plan(config_of("eval", "model=gpt2", "adapter=[one,two]", "tasks.batch_size=8"))
    assert found is not None
    assert [need.what.split(",")[0] for need in found.memory.device] == ["model"]
    alone = make_plan(config_of("eval", "model=gpt2", "tasks.batch_size=8"))
    assert alone is not None
    assert found.passes[0].tokens == 3 * alone.passes[0].tokens


def test_without_sizes_there_is_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = config_of("analyze", "model=gpt2", "model.name=me/mine")
    assert make_plan(unknown) is None
    assert make_plan(config_of("analyze", "model=gpt2", "sae.measuring.release=me/mine", "sae.measuring.width=null")) is None
    print_plan(unknown)
    assert "no plan: how large 'me/mine' or its SAEs are is not known" in " ".join(capsys.readouterr().out.split())


# --- does it fit? ----------------------------------------------------------------------------------------------------------------------------------


def test_needs_add_up_to_the_widest_phase() -> None:
    phases = {"x": [Need("b", 1e9)], "y": [Need("c", 2e9), Need("d", 1e9)]}
    made = Memory([Need("a", 3e9)], phases, [Need("e", 2e9)], sampling=[Need("f", 1e9)], loading=[Need("a", 3e9)])
    assert made.largest_phase == "y"
    assert made.device_peak == 6e9
    on_card = card(8).needed(made)
    assert on_card["device"] == (6e9 + CUDA, 8e9)
    assert on_card["host"] == (3e9 + LIBRARIES, 64e9), "weights pass through the host before statistics grow there"
    assert set(card(6).lacks(made)) == {"device"}
    assert set(card(8, host=3).lacks(made)) == {"host"}
    cpu = Hardware("CPU", "cpu", 9e9, 9e9, SPEED)
    assert cpu.needed(made) == {"machine": (6e9 + 2e9 + LIBRARIES, 9e9)}


def test_time_is_work_over_speed() -> None:
    assert card(1).seconds(Pass("p", 1, model=35e14, single=7e13), "bfloat16") == pytest.approx((35 + 7) / 0.35)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("lang", ["ml", "[ml,hi]"])
def test_every_experiment_has_a_plan(experiment: str, lang: str) -> None:
    found = make_plan(config_of("train", f"lang={lang}", f"experiment={experiment}"))
    assert found is not None
    assert not card(80).lacks(found.memory)
    assert {path.stem for path in CONF.glob("experiment/*.yaml")} - {"method_comparison"} == set(EXPERIMENTS)


def test_what_experiments_are_said_to_fit() -> None:
    quick, one, gpt2 = (make_plan(config_of("train", f"experiment={name}")) for name in ("gemma2_2b_quick", "gemma3_1b", "gpt2"))
    assert quick is not None
    assert one is not None
    assert gpt2 is not None
    # What a T4 has, the smallest of the cards sold with 16 GB; its host as small.
    assert not card(15.8, host=16).lacks(quick.memory)
    assert card(10).lacks(quick.memory)
    assert not card(24, host=32).lacks(one.memory)
    assert not Hardware("CPU", "cpu", 16e9, 16e9, SPEED).lacks(gpt2.memory)


def test_advice_names_what_is_enough_first() -> None:
    config = config_of("train", "experiment=gemma2_2b")
    lines = advice(config, card(24))
    assert any(line.startswith("sae.heldout=null (") for line in lines)
    assert any(line.startswith("sae.layers=[0,4,8,12,16,20,24] (") for line in lines)
    assert lines[-1].startswith("all of these (")
    enough = advice(config, card(52))
    assert float(enough[0].split("(")[1].split(" GB")[0]) < 52


def test_draws_of_random_directions_are_given_up_before_the_saes_that_measure() -> None:
    config = config_of("analyze", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus", "measures=full")
    assert any(line.startswith("measures.random_sae.draws=1 (") for line in advice(config, card(24)))
    alone = config_of("analyze", "model=gemma2_2b", "sae=gemma_scope_2b_16k", "corpus=flores_plus")
    assert not any("random" in line for line in advice(alone, card(8)))


# --- how a run begins ------------------------------------------------------------------------------------------------------------------------------

HUGE = ("experiment=gemma2_2b", "batch_tokens=100000000", "device=cpu")


def test_a_run_that_cannot_fit_is_refused_with_advice() -> None:
    with pytest.raises(UserError) as refused:
        begin(config_of("train", *HUGE))
    lines = str(refused.value).splitlines()
    assert "GB of memory of the machine" in lines[0]
    assert any(line.strip().startswith("batch_tokens=") for line in lines)
    assert lines[-1] == "To start it all the same: plan=false"


def test_a_run_that_fits_says_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    begin(config_of("eval", "model=gpt2", "corpus=flores_plus", "device=cpu", "batch_tokens=64"))
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Note: about ")
    assert "of the machine's" in said


def test_tiny_models_and_those_who_know_better_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    begin(config_of("train", "batch_tokens=100000000"))
    begin(config_of("train", *HUGE, "plan=false"))
    without_model = config_of("analyze", "model=gemma2_2b", "batch_tokens=100000000", "stats=[somewhere]")
    begin(without_model)
    assert capsys.readouterr().out == ""


def test_statistics_that_are_there_need_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(config_of("analyze", "model=gemma2_2b", "compare=[one,other]"))
    assert "loads no model" in capsys.readouterr().out


def test_what_does_not_fit_is_told_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(config_of("train", *HUGE))
    said = " ".join(capsys.readouterr().out.split())
    assert "DOES NOT FIT" in said
    assert "these overrides need less" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device that is to be missing")
def test_a_device_that_is_not_there_leaves_the_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(config_of("train", "experiment=gemma2_2b", "device=cuda"))
    said = " ".join(capsys.readouterr().out.split())
    assert "SAEs, measuring: 26 x 16,384 latents" in said
    assert "device: 'cuda' is not there" in said


def test_this_machine_has_memory_and_speed() -> None:
    here = look("cpu", {"float32"}, (128, 512))
    assert here.kind == "cpu"
    assert here.memory == here.host > 1e8
    assert here.speed["float32"] > 1e7


def test_plans_are_no_part_of_what_a_run_is() -> None:
    assert "plan" not in config_of("train", "plan=false").model_dump(mode="json")
    assert [config_of("train", f"plan={text}").plan for text in ("true", "false", "only", "off", "check")] == ["only", "off", "only", "off", "check"]
