"""Activations of prompts, kept while they are answered, against a plain pass over each prompt alone."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, MambaConfig, OpenAIGPTConfig

from lingact.config.tasks import TasksConfig
from lingact.evaluation import prompt_activations as module
from lingact.evaluation.answers import AnswerCache
from lingact.evaluation.option_scores import PromptOptions, option_scores
from lingact.evaluation.prompt_activations import PromptActivations, PromptReader
from lingact.evaluation.records import EvalRun
from lingact.evaluation.results import ModelAnswers, prompt_activations
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.models.lm import LanguageModel, find_blocks
from lingact.models.sae import Dictionaries, Dictionary

HASHES = {"measuring": "a", "heldout": "b"}
OTHERS = {
    "stateful": MambaConfig(vocab_size=259, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0, bos_token_id=2, eos_token_id=1),
    "no keys and values": OpenAIGPTConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5),
}
ASKED = [
    PromptOptions((2, *range(60, 90)), ((70, 71, 72), (73,), (74, 75))),
    PromptOptions((2, 99), ((70,), (71,))),
    PromptOptions((2,), ((80, 81), (82, 83))),
    PromptOptions((2, 44, 45, 1, 46), ((80, 81), (82, 83))),
]


@pytest.fixture
def sae_sets(dictionaries: Dictionaries, make_sae: Any) -> dict[str, Dictionaries]:
    layers = {layer: dictionaries[layer] for layer in (0, 1)}
    return {"measuring": layers, "heldout": {layer: Dictionary(make_sae(layer, width=20), layer) for layer in layers}}


@torch.no_grad()
def plainly(lm: LanguageModel, sae_sets: dict[str, Dictionaries], prompt: Sequence[int]) -> PromptActivations:
    """One pass over the prompt alone, without padding; hidden states and sae-lens's `encode`."""
    hidden = lm.model(torch.tensor([list(prompt)]), output_hidden_states=True).hidden_states
    kept = [place for place, token in enumerate(prompt) if token not in (0, 1, 2)]

    def by_layer(of: Any) -> dict[str, float | None]:
        return {str(layer): float(of(layer, hidden[layer + 1][0, kept]).mean()) if kept else None for layer in (0, 1)}

    def of(own: Dictionaries) -> Any:
        return lambda layer, x: (own[layer].sae.encode(x) * own[layer].sae.W_dec.norm(dim=-1)).sum(dim=-1)

    activation = {name: by_layer(of(own)) for name, own in sae_sets.items()}
    return {"tokens": len(kept), "residual_norm": by_layer(lambda _, x: x.norm(dim=-1)), "activation": activation}


def same(found: PromptActivations, expected: PromptActivations) -> None:
    assert found["tokens"] == expected["tokens"]
    for ours, theirs in (
        (found["residual_norm"], expected["residual_norm"]),
        *((found["activation"][name], expected["activation"][name]) for name in ("measuring", "heldout")),
    ):
        assert ours == {layer: value if value is None else pytest.approx(value, rel=1e-4) for layer, value in theirs.items()}


def test_each_prompt_has_the_means_of_a_plain_pass(lm: LanguageModel, sae_sets: dict[str, Dictionaries], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATENTS_AT_ONCE", 4 * 48 * 7)  # several pieces
    reader = PromptReader(lm, sae_sets, HASHES)
    plain = [scores for _, scores in option_scores(lm.model, [ASKED[:3], ASKED[3:]], pad=0)]
    assert [scores for _, scores in option_scores(lm.model, [ASKED[:3], ASKED[3:]], pad=0, reader=reader)] == plain, "looking changes nothing"
    found = reader.take()
    for prompt, each in zip(ASKED, found, strict=True):
        same(each, plainly(lm, sae_sets, prompt.prompt))
    assert [each["tokens"] for each in found] == [30, 1, 0, 3], "neither BOS nor EOS counts"
    assert len({json.dumps(each) for each in found}) == 4
    assert reader.take() == []


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_read_prompts_with_each_option_are_looked_at_once(name: str, lm: LanguageModel, sae_sets: dict[str, Dictionaries]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[name]).eval()
    other = LanguageModel(model, lm.tokenizer, lm.tokens, find_blocks(model, 2), {"name": name, "sha256": "0"})
    reader = PromptReader(other, sae_sets, HASHES)
    list(option_scores(model, [ASKED[:2], ASKED[2:]], pad=0, reader=reader))
    hidden: dict[int, Any] = {}
    handles = [
        block.register_forward_hook(
            lambda _m, _i, output, layer=layer: hidden.update({layer: output if isinstance(output, torch.Tensor) else output[0]})
        )
        for layer, block in enumerate(other.blocks)
    ]
    for each, found in zip(ASKED, reader.take(), strict=True):
        with torch.no_grad():
            model(torch.tensor([list(each.prompt)]))
        kept = [place for place, token in enumerate(each.prompt) if token not in (0, 1, 2)]
        for layer in (0, 1):
            expected = None if not kept else pytest.approx(float(hidden[layer][0, kept].norm(dim=-1).mean()), rel=1e-4)
            assert found["residual_norm"][str(layer)] == expected
    for handle in handles:
        handle.remove()


def test_what_is_not_finite_is_not_there(lm: LanguageModel, sae_sets: dict[str, Dictionaries]) -> None:
    handle = lm.blocks[1].register_forward_hook(lambda _m, _i, output: output * float("inf"))
    reader = PromptReader(lm, sae_sets, HASHES)
    list(option_scores(lm.model, [ASKED[:1]], pad=0, reader=reader))
    handle.remove()
    (found,) = reader.take()
    assert found["residual_norm"]["1"] is None
    assert found["residual_norm"]["0"] is not None


# --- through the scorer ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[TaskInstance, ...]:
    """Items whose prompts differ in length, two of them with the same prompt and other options."""
    items = [{"id": str(i), "question": " ".join(["why"] * (i + 1)), "choices": ["yes", f"no {i}"], "answer": i % 2} for i in range(6)]
    items.append({"id": "6", "question": "why why why", "choices": ["maybe", "yes", "never"], "answer": 2})
    (tmp_path / "quiz_en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    own = {"quiz": {"kind": "items", "path": f"{tmp_path}/quiz_{{lang}}.jsonl", "split_by": None}}
    rest = {"missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 8}
    return load_tasks(TasksConfig.model_validate({"benchmarks": [], "own": own} | rest), ["en"]).instances


def score(lm: LanguageModel, tasks: Sequence[TaskInstance], reader: PromptReader | None, answers: AnswerCache | None = None) -> EvalRun:
    with tqdm(file=io.StringIO()) as bar:
        return Scorer(lm, 4, answers, bar, reader).score(lm.model, tasks, None)


def test_each_document_has_the_activations_of_its_own_prompt(
    lm: LanguageModel, sae_sets: dict[str, Dictionaries], tasks: tuple[TaskInstance, ...]
) -> None:
    run = score(lm, tasks, PromptReader(lm, sae_sets, HASHES))
    records = run.samples["quiz_en"]
    for record in records:
        same(record["activations"], plainly(lm, sae_sets, lm.tokenizer(record["prompt"]).input_ids))
    assert records[6]["activations"] == records[2]["activations"]
    plain = score(lm, tasks, None).samples["quiz_en"]
    assert [{key: value for key, value in record.items() if key != "activations"} for record in records] == plain
    table = prompt_activations({"base": ModelAnswers(run, {})})
    assert len(table) == 7 * 2 * 2
    row = table.query("doc_id == 3 and sae_set == 'heldout' and layer == 1").iloc[0]
    record = records[3]
    assert row["activation"] == record["activations"]["activation"]["heldout"]["1"]
    assert row["residual_norm"] == record["activations"]["residual_norm"]["1"]
    assert row["margin"] == record["loglikelihood"][1] - record["loglikelihood"][0]
    assert (row["language"], row["benchmark"], row["acc"]) == ("en", "quiz", float(row["margin"] > 0))


def test_stored_answers_bring_their_activations_and_belong_to_their_saes(
    lm: LanguageModel, sae_sets: dict[str, Dictionaries], tasks: tuple[TaskInstance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = AnswerCache(tmp_path / "answers")
    reader = PromptReader(lm, sae_sets, HASHES)
    first = score(lm, tasks, reader, answers)
    other = score(lm, tasks, PromptReader(lm, {"measuring": sae_sets["heldout"]}, {"measuring": "b"}), answers)
    assert list(other.samples["quiz_en"][0]["activations"]["activation"]) == ["measuring"]
    assert "activations" not in score(lm, tasks, None, answers).samples["quiz_en"][0]
    monkeypatch.setattr(Scorer, "_answer", lambda *_: pytest.fail("it was stored"))
    assert score(lm, tasks, reader, answers).samples == first.samples
