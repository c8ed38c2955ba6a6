"""Evaluation end to end: a tiny random Gemma 2 and two local tasks in two languages, against log-likelihoods computed here."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tqdm import tqdm
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from lingact.config.jobs import EvalConfig
from lingact.config.tasks import TasksConfig
from lingact.config.training import LoraAdapter
from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.evaluation import compare
from lingact.evaluation.records import EvalRun
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.models.adapter_hashes import weights_hash
from lingact.models.adapters import attach_adapter, base_behaviour, save_adapter, unload_adapter
from lingact.models.lm import LanguageModel
from lingact.statistics.paired import TestSettings
from lingact.workflows import evaluate
from tests.helpers.figures import drawn

ITEMS: dict[str, Any] = {"missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 5}
BENCHMARKS = {"colours": "colours_{lang}", "numbers": "numbers_{lang}"}
LANGUAGES = ("en", "ml")
TEXT = {"en": ("The sky is", ["blue.", "a deep green.", "red."]), "ml": ("ആകാശം", ["നീലയാണ്.", "പച്ചയാണ്.", "ചുവപ്പാണ്."])}
PAD, BOS = 0, 2


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; BOS in front, as Gemma's tokenizer does it."""
    specials = ["<pad>", "<eos>", "<bos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


@pytest.fixture
def model() -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=256, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=1, initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Task files that name their data relative to themselves, through a shared base file."""
    place = tmp_path / "tasks" / "nested"
    place.mkdir(parents=True)
    base = {
        "output_type": "multiple_choice",
        "dataset_path": "json",
        "test_split": "test",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
    }
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    (place / "_base").write_text(yaml.safe_dump(base | {"metric_list": metrics, "metadata": {"version": 1.0}}))
    for benchmark in BENCHMARKS:
        for code in LANGUAGES:
            prompt, options = TEXT[code]
            items = [
                {
                    "id": f"fact{i}",
                    "kind": "read" if i % 2 else "transfer",
                    "query": f"{benchmark} {i}: {prompt}",
                    "choices": options[i % 3 :] + options[: i % 3],
                    "gold": i % 3,
                }
                for i in range(8)
            ]
            (place / f"{benchmark}_{code}.jsonl").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
            task = {"include": "_base", "task": f"{benchmark}_{code}", "dataset_kwargs": {"data_files": {"test": f"{benchmark}_{code}.jsonl"}}}
            (place / f"{benchmark}_{code}.yaml").write_text(yaml.safe_dump(task))
    return tmp_path / "tasks"


def score(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompt: str, option: str) -> float:
    """log P(option | BOS prompt) in nats, one text at a time."""
    given, whole = ([BOS, *tokenizer(text, add_special_tokens=False).input_ids] for text in (prompt, prompt + option))
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logp[place - 1, whole[place]]) for place in range(len(given), len(whole)))


def asked(
    folder: Path, languages: Sequence[str] = LANGUAGES, benchmarks: Mapping[str, str] = BENCHMARKS, limit: int | None = None
) -> tuple[TaskInstance, ...]:
    """The questions of the benchmarks."""
    own = {
        name: {"kind": "lm_eval", "folder": folder, "task": task, "key": ["id"], "facts": True, "split_by": "kind"}
        for name, task in benchmarks.items()
    }
    return load_tasks(TasksConfig.model_validate({"benchmarks": [], "own": own, **ITEMS, "limit": limit}), languages).instances


def answer(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[TaskInstance], *, context: int = 256, batch_size: int = 5
) -> EvalRun:
    lm = LanguageModel(model, tokenizer, Tokens(tokenizer, context), torch.nn.ModuleList(), {"name": "tiny", "sha256": "0"})
    with tqdm(total=sum(len(instance.requests) for instance in tasks), file=io.StringIO()) as bar:
        return Scorer(lm, batch_size, None, bar).score(model, tasks, None)


def run(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, *, limit: int | None = None, context: int = 256) -> EvalRun:
    return answer(model, tokenizer, asked(folder, limit=limit), context=context)


@pytest.mark.usefixtures("socket_disabled")
def test_scores_equal_log_likelihoods_computed_here(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    result = run(model, tokenizer, folder)
    assert list(dict.fromkeys(result.items["task"])) == ["colours_en", "colours_ml", "numbers_en", "numbers_ml"]
    assert (len(result.items), result.truncated) == (32, 0)
    rows = result.items.set_index(["task", "doc_id"])
    for task, records in result.samples.items():
        for record in records:
            expected = [score(model, tokenizer, record["prompt"], choice) for choice in record["choices"]]
            assert record["loglikelihood"] == pytest.approx(expected, abs=2e-4)
            lengths = [len(choice.strip()) for choice in record["choices"]]
            best = max(range(3), key=lambda option: expected[option])
            best_norm = max(range(3), key=lambda option: expected[option] / lengths[option])
            row = rows.loc[(task, record["doc_id"])]
            assert (row["acc"], row["acc_norm"]) == (float(best == record["gold"]), float(best_norm == record["gold"]))
            assert (row["item"], row["kind"], row["options"]) == (f"yours/fact{record['doc_id']}", "read" if record["doc_id"] % 2 else "transfer", 3)
    assert 0 < result.items["acc"].mean() < 1


def test_every_text_starts_with_one_bos(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    fed: list[torch.Tensor] = []
    handle = model.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    run(model, tokenizer, folder)
    handle.remove()
    assert fed
    begun = [batch for batch in fed if (batch == BOS).any()]  # prompts, padded on the left; the others are options behind them
    assert begun
    for batch in begun:
        text = batch != tokenizer.pad_token_id
        assert (batch == BOS).sum() == len(batch)
        assert (batch.gather(1, text.long().argmax(dim=1, keepdim=True)) == BOS).all()


def test_base_against_base_is_exactly_zero(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    first, second = run(model, tokenizer, folder), run(model, tokenizer, folder)
    pd.testing.assert_frame_equal(first.items, second.items)
    settings, groups = TestSettings(resamples=200, confidence=0.95, seed=0), {"all": LANGUAGES}
    table = compare.difference_table(first.items, [second.items], groups=groups, settings=settings)
    assert (table[["estimate", "won", "lost"]] == 0).all(axis=None)
    assert (table["lo"] == -table["hi"]).all()
    assert (table[["p", "p_bootstrap", "p_holm", "p_bh"]] == 1).all(axis=None)
    assert set(table["language"]) == {"en", "ml", "all"}


def test_tasks_can_be_used_twice_and_the_adapter_is_off_for_the_base(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    plain = run(model, tokenizer, folder)
    tasks = asked(folder)
    wrapped = noisy(model)
    with base_behaviour(wrapped):
        base = answer(wrapped, tokenizer, tasks)
    adapter = answer(wrapped, tokenizer, tasks)
    again = answer(unload_adapter(wrapped), tokenizer, tasks)
    assert base.samples == plain.samples == again.samples
    assert adapter.samples != plain.samples
    compare.refuse_unpaired(base.items, adapter.items)


def noisy(model: Gemma2ForCausalLM) -> torch.nn.Module:
    targets = ("q_proj", "down_proj")
    peft = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.0, use_rslora=False, use_dora=False, init="default", targets=targets, layers="all")
    wrapped = attach_adapter(model, model.model.layers, peft, seed=1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return wrapped.eval()


def test_limit_and_truncation(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    result = run(model, tokenizer, folder, limit=3)
    assert (result.items.groupby("task").size() == 3).all()
    assert run(model, tokenizer, folder, limit=1, context=40).truncated > 0
    with pytest.raises(UserError, match=r"the option 'പച്ചയാണ്\.' has 26 tokens, and model\.context is 20"):
        run(model, tokenizer, folder, limit=1, context=20)


def test_an_option_without_a_token_of_its_own(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    data = folder / "nested" / "colours_en.jsonl"
    items = [{"query": "The sky", "choices": choices, "gold": 1} for choices in (["is", "blue"], ["", "blue"])]
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "nested" / "_base").write_text((folder / "nested" / "_base").read_text() + "target_delimiter: ''\n")
    with pytest.raises(UserError, match="merges the option '' with the end of its prompt 'The sky'"):
        run(model, tokenizer, folder)


def test_nothing_is_left_behind(
    model: Gemma2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    import lm_eval.api.task
    import lm_eval.utils

    before = (lm_eval.api.task.tqdm, lm_eval.utils.env.from_string, logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled())
    run(model, tokenizer, folder)
    assert capfd.readouterr() == ("", ""), "the bar of the scorer, which draws elsewhere, is the only one"
    assert not (tmp_path / "cache").exists()
    assert before == (lm_eval.api.task.tqdm, lm_eval.utils.env.from_string, logging.getLogger("lm_eval").level, datasets.are_progress_bars_disabled())


def test_other_local_formats_go_through_datasets(
    model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = folder / "nested"
    pd.DataFrame({"query": ["one plus one is", "two plus two is"], "right": ["two", "four"], "wrong": ["nine", "ten"]}).to_csv(
        place / "sums.csv", index=False
    )
    task = {
        "task": "sums_en",
        "output_type": "multiple_choice",
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": {"test": "sums.csv"}},
        "test_split": "test",
    }
    task |= {"doc_to_text": "query", "doc_to_choice": "{{[right, wrong]}}", "doc_to_target": 0}
    (place / "sums_en.yaml").write_text(yaml.safe_dump(task))
    result = answer(model, tokenizer, asked(folder, ["en"], {"sums": "sums_{lang}"}))
    assert len(result.items) == 2
    assert result.items["item"].isna().all()
    assert result.items["kind"].isna().all()
    assert not (tmp_path / "cache").exists()


def test_a_missing_task_names_the_languages_that_have_it(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        asked(folder, ["en", "hi", "zh"], {"colours": "colours_{lang}", "numbers": "numbrs_{lang}"})
    first, second = str(caught.value).splitlines()
    assert "'colours' lacks hi, zh; it has en, ml." in first
    assert "has no task 'numbrs_en'; did you mean 'numbers_en'?" in second


def test_damaged_data_is_named(folder: Path) -> None:
    data = folder / "nested" / "colours_ml.jsonl"
    whole = data.read_bytes()
    data.write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"colours_ml\.jsonl, line 8: not JSON \(.*\); the file is truncated or damaged"):
        asked(folder)
    data.write_bytes(b"\xff" + whole)
    with pytest.raises(UserError, match=r"line 1: not UTF-8 \(byte 0 is 0xFF\); it is truncated"):
        asked(folder)
    data.write_text("\n")
    with pytest.raises(UserError, match="has no items"):
        asked(folder)
    data.unlink()
    with pytest.raises(UserError, match=r"names the data file '.*colours_ml\.jsonl', which is not there"):
        asked(folder)


# --- the workflow --------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path) -> EvalConfig:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = [{"unit": f"s{i}", **{code: f"{TEXT[code][0]} {i} {TEXT[code][1][i % 3]}" for code in LANGUAGES}} for i in range(12)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in text))
    own = {"kind": "lm_eval", "folder": folder, "key": ["id"], "facts": True, "split_by": "kind"}
    return EvalConfig.model_validate(
        {
            "seed": 1, "device": "cpu", "batch_tokens": 512, "adapter": None, "resamples": 200, "block": None, "confidence": 0.95, "power": 0.8,
            "cache": tmp_path / "cache", "contamination": {"words": 8, "share": 0.5}, "text_split": "all",
            "corpus": {"kind": "files", "path": tmp_path / "text.jsonl", "max_sentences": None, "splits": {"train": 0.4, "dev": 0.3, "heldout": 0.3}},
            "model": {"name": str(tmp_path / "model"), "revision": None, "dtype": "float32", "attention": "eager", "context": 256},
            "languages": {"reference": "en", "high": [], "low": ["ml"]},
            "tasks": {"benchmarks": [], "own": {name: {**own, "task": task} for name, task in BENCHMARKS.items()}, **ITEMS, "batch_size": 8}, "devices": 1, "nodes": 1,
            "tracking": {"mode": "disabled", "project": "lingact", "entity": None, "group": None, "tags": []},
        }
    )  # fmt: skip


def test_base_and_adapter_through_the_workflow(config: EvalConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = Gemma2ForCausalLM.from_pretrained(config.model.name, attn_implementation="eager", dtype=torch.float32)
    base_hash = weights_hash(fresh)
    save_adapter(noisy(fresh), tmp_path / "trained" / "adapter", config.model.name, base_hash)
    capsys.readouterr()

    with drawn():
        delta = evaluate.run(config.model_copy(update={"adapter": (str(tmp_path / "trained"),)}), tmp_path / "run")

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for task in (*BENCHMARKS, "all"):
        for code in LANGUAGES:
            values = {name: summary[f"acc/{task}/{code}/{name}"] for name in ("base", "adapter", "delta", "delta_lo", "delta_hi", "p")}
            assert values["delta"] == pytest.approx(values["adapter"] - values["base"])
            assert values["delta_lo"] <= values["delta"] <= values["delta_hi"]
    assert delta == pytest.approx((summary["acc/all/en/delta"] + summary["acc/all/ml/delta"]) / 2)
    assert delta == summary["acc/all/all/delta"]
    tables = {name: pd.read_csv(tmp_path / "run" / "tables" / f"{name}.csv") for name in ("accuracy", "differences", "groups")}
    assert len(tables["accuracy"]) == 2 * 3 * 2 * 3 * 2  # models, tasks, languages, kinds, metrics
    assert len(tables["differences"]) == 3 * 3 * 3 * 2  # tasks, languages and their mean, kinds, metrics
    assert {"n", "estimate", "lo", "hi", "chance", "p", "p_holm"} <= set(tables["differences"])
    samples = (tmp_path / "run" / "samples" / "adapter_colours_ml.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in samples] == [f"yours/fact{i}" for i in range(8)]
    assert (tmp_path / "run" / "figures" / "differences.png").stat().st_size > 10_000
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["identity"]["model"]["sha256"] == base_hash
    assert set(manifest["identity"]["tasks"]) == {f"{name}_{code}" for name in BENCHMARKS for code in LANGUAGES}
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0].startswith("Accuracy, adapter against base")
    assert max(map(len, printed[:-1])) <= 110


def test_the_base_alone(config: EvalConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = config.model_copy(update={"tasks": config.tasks.model_copy(update={"limit": 4})})
    assert evaluate.run(limited, tmp_path / "run") is None
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary) == {f"acc/{task}/{code}/base" for task in (*BENCHMARKS, "all") for code in LANGUAGES}
    assert (tmp_path / "run" / "figures" / "accuracy.png").is_file()
    assert not (tmp_path / "run" / "tables" / "differences.csv").exists()
    assert "only 4 items of each benchmark were asked, the same ones in every language" in capsys.readouterr().out


def test_an_adapter_of_another_model_ends_the_run(config: EvalConfig, model: Gemma2ForCausalLM, tmp_path: Path) -> None:
    save_adapter(noisy(model), tmp_path / "trained", "another", "0" * 64)
    with pytest.raises(UserError, match="belongs to another model: it was trained on 'another'"):
        evaluate.run(config.model_copy(update={"adapter": (str(tmp_path / "trained"),)}), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"config.yaml", "manifest.json", "wandb"}
