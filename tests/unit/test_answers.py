"""Answers that were kept, to whom they belong, and what happens when the device runs out of memory."""

import copy
import dataclasses
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from lingact.config.tasks import TasksConfig
from lingact.config.training import LoraAdapter
from lingact.data.tokens import Tokens
from lingact.errors import UserError
from lingact.evaluation import loglikelihoods
from lingact.evaluation.answers import AnswerCache, identity_of
from lingact.evaluation.loglikelihoods import batch_size_for
from lingact.evaluation.records import EvalRun
from lingact.evaluation.scorer import Scorer
from lingact.evaluation.tasks import TaskInstance, load_tasks
from lingact.models.adapter_hashes import adapter_hash
from lingact.models.adapters import attach_adapter
from lingact.models.lm import LanguageModel
from tests.helpers.folders import plant, untouched

ITEMS = [
    {"question": "Snow is", "choices": ["white", "red", "hot"], "answer": 0},
    {"question": "Two and two are", "choices": ["five", "four"], "answer": 1},
    {"question": "A dog is", "choices": ["an animal", "a stone", "an hour", "a number"], "answer": 0},
]
OPTIONS = 9
PEFT = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.0, use_rslora=False, use_dora=False, init="gaussian", targets=("q_proj",), layers="all")


def load(folder: Path, items: Sequence[dict[str, Any]] = ITEMS) -> tuple[TaskInstance, ...]:
    (folder / "quiz_en.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    own = {"quiz": {"kind": "items", "path": f"{folder}/quiz_{{lang}}.jsonl", "split_by": None}}
    rest = {"missing": "refuse", "items": "shared", "limit": None, "fewshot": None, "batch_size": 8}
    return load_tasks(TasksConfig.model_validate({"benchmarks": [], "own": own} | rest), ["en"]).instances


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[TaskInstance, ...]:
    return load(tmp_path)


@pytest.fixture
def answers(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "answers")


@contextmanager
def scorer(lm: LanguageModel, answers: AnswerCache | None, batch_size: int = 8) -> Iterator[Scorer]:
    with tqdm(total=OPTIONS, file=io.StringIO()) as bar:
        yield Scorer(lm, batch_size, answers, bar)


def score(lm: LanguageModel, tasks: Sequence[TaskInstance], answers: AnswerCache | None, batch_size: int = 8, adapter: str | None = None) -> EvalRun:
    with scorer(lm, answers, batch_size) as made:
        return made.score(lm.model, tasks, adapter)


def likelihoods(run: EvalRun) -> list[list[float]]:
    return [record["loglikelihood"] for record in run.samples["quiz_en"]]


def kept(answers: AnswerCache) -> list[Path]:
    return sorted(answers.folder.iterdir()) if answers.folder.is_dir() else []


# --- kept and recalled --------------------------------------------------------------------------------------------------------------------------


def test_what_was_kept_comes_back_and_to_its_owner_alone(answers: AnswerCache) -> None:
    identity = {"model": "a", "versions": {"torch": "1", "peft": "2"}}
    assert answers.get(identity) is None
    answers.put(identity, {"answers": [[-1.5, True]], "truncated": 0})
    assert answers.get(identity) == {"answers": [[-1.5, True]], "truncated": 0}
    assert answers.get(dict(reversed(identity.items()))) == {"answers": [[-1.5, True]], "truncated": 0}
    for other in (
        {"model": "b", "versions": {"torch": "1", "peft": "2"}},
        {"model": "a", "versions": {"torch": "2", "peft": "1"}},
        {"model": "a"},
        identity | {"more": None},
    ):
        assert answers.get(other) is None
    answers.put(identity | {"model": "b"}, {"answers": [], "truncated": 1})
    assert answers.get(identity) == {"answers": [[-1.5, True]], "truncated": 0}
    answers.put(identity, {"answers": [], "truncated": 2})
    assert answers.get(identity) == {"answers": [], "truncated": 2}
    assert len(kept(answers)) == 2


def test_a_file_under_a_strange_name_is_nobodys(answers: AnswerCache) -> None:
    answers.put({"model": "a"}, {"answers": [], "truncated": 0})
    answers.put({"model": "b"}, {"answers": [[-1.0, False]], "truncated": 0})
    first, second = kept(answers)
    first.write_bytes(second.read_bytes())
    assert sorted(answers.get({"model": name}) is None for name in "ab") == [False, True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-3],
        lambda _: b"",
        lambda whole: b"\xff" + whole,
        lambda _: b"[1, 2]",
        lambda _: b"12",
        lambda _: b'{"identity": {"model": "a"}}',
    ],
    ids=["cut off", "empty", "no text", "list", "number", "no answers"],
)
def test_a_damaged_file_is_refused(damage: Any, answers: AnswerCache) -> None:
    answers.put({"model": "a"}, {"answers": [[-1.5, True]], "truncated": 0})
    (path,) = kept(answers)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"'{path}' cannot be read: it is truncated or not a lingact file; delete it"):
        answers.get({"model": "a"})


def test_writers_at_once_lose_no_answers(answers: AnswerCache) -> None:
    def put(first: int) -> None:
        for number in range(20):  # some of its own, and one that all write
            answers.put({"model": first, "number": number}, {"answers": [[float(first), True]], "truncated": number})
            answers.put({"model": "all"}, {"answers": [[1.0, True]] * 10_000, "truncated": 0})

    writers = [multiprocessing.get_context("fork").Process(target=put, args=(first,)) for first in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(kept(answers)) == 4 * 20 + 1, "nothing unfinished either"
    for first in range(4):
        for number in range(20):
            assert answers.get({"model": first, "number": number}) == {"answers": [[float(first), True]], "truncated": number}
    assert answers.get({"model": "all"}) == {"answers": [[1.0, True]] * 10_000, "truncated": 0}


def test_what_the_user_keeps_in_the_cache_is_left_alone(answers: AnswerCache) -> None:
    before = plant(answers.folder, "notes.txt", "answers.json", ".cache.1/x")
    answers.put({"model": "a"}, {"answers": [], "truncated": 0})
    assert untouched(before, answers.folder)


# --- to whom they belong ------------------------------------------------------------------------------------------------------------------------


def test_answers_belong_to_weights_settings_and_tokenizer(lm: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
    lm.identity.update(dtype="float32", config_sha256="c")
    plain = identity_of(lm, None)
    assert plain == identity_of(lm, None)
    json.dumps(plain)

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["pre_tokenizer"]["add_prefix_space"] = True
    changed = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(backend)), bos_token="<bos>")
    others = [
        identity_of(lm, "adapter"),
        identity_of(lm, "another adapter"),
        identity_of(dataclasses.replace(lm, identity=lm.identity | {"sha256": "1"}), None),
        identity_of(dataclasses.replace(lm, identity=lm.identity | {"dtype": "bfloat16"}), None),
        identity_of(dataclasses.replace(lm, identity=lm.identity | {"config_sha256": "d"}), None),
        identity_of(dataclasses.replace(lm, tokens=Tokens(tokenizer, 63)), None),
        identity_of(dataclasses.replace(lm, tokenizer=changed), None),
    ]
    assert len({json.dumps(identity, sort_keys=True) for identity in (plain, *others)}) == 8
    renamed = dataclasses.replace(lm, identity=lm.identity | {"name": "elsewhere"})
    assert identity_of(renamed, None) == plain, "the place of a model is no property of it"
    lm.model.config._attn_implementation = "sdpa"
    assert identity_of(lm, None) != plain


def test_answers_are_kept_once_for_each_model_batch_size_and_question(lm: LanguageModel, answers: AnswerCache, tmp_path: Path) -> None:
    tasks = load(tmp_path)
    for count, (adapter, batch_size, asked) in enumerate(
        [
            (None, 8, tasks),
            ("adapter", 8, tasks),
            ("other", 8, tasks),
            (None, 4, tasks),
            (None, 8, load(tmp_path, [ITEMS[0] | {"question": "Snow's"}, *ITEMS[1:]])),
            (None, 8, load(tmp_path, [ITEMS[0] | {"answer": 1}, *ITEMS[1:]])),
        ],
        start=1,
    ):
        for _ in range(2):
            score(lm, asked, answers, batch_size, adapter)
            assert len(kept(answers)) == count


# --- the scorer ---------------------------------------------------------------------------------------------------------------------------------


def test_kept_answers_are_used(lm: LanguageModel, tasks: tuple[TaskInstance, ...], answers: AnswerCache) -> None:
    first = score(lm, tasks, answers)
    (path,) = kept(answers)
    content = json.loads(path.read_text())
    assert [value for value, _ in content["answers"]["answers"]] == [value for record in likelihoods(first) for value in record]
    planted = [-1.0, -2.0, -3.0, -2.0, -1.0, -9.0, -8.0, -7.0, -6.0]
    path.write_text(json.dumps(content | {"answers": {"answers": [[value, False] for value in planted], "truncated": 5}}))
    again = score(lm, tasks, answers)
    assert likelihoods(again) == [[-1, -2, -3], [-2, -1], [-9, -8, -7, -6]]
    assert again.items["acc"].tolist() == [1, 1, 0]
    # By character: -1/5, -2/3, -3/3; -2/4, -1/4; -9/9, -8/7, -7/7, -6/8.
    assert again.items["acc_norm"].tolist() == [1, 1, 0]
    assert again.truncated == 5
    assert likelihoods(score(lm, tasks, None)) == likelihoods(first), "a scorer that keeps nothing asks"


def test_a_recalled_task_needs_no_model_and_moves_the_bar(lm: LanguageModel, tasks: tuple[TaskInstance, ...], answers: AnswerCache) -> None:
    first = score(lm, tasks, answers)
    with forward_passes(lm) as passes, scorer(lm, answers) as made:
        again = made.score(lm.model, tasks, None)
        assert made._bar.n == OPTIONS
    assert passes == []
    assert again.samples == first.samples
    assert again.items.equals(first.items)


def test_an_adapters_answers_are_its_own(lm: LanguageModel, tasks: tuple[TaskInstance, ...], answers: AnswerCache) -> None:
    base = score(lm, tasks, answers)
    lm.model = attach_adapter(lm.model, lm.blocks, PEFT, seed=1)
    for name, parameter in lm.model.named_parameters():
        parameter.data += 0.3 * ("lora_B" in name)
    adapted = score(lm, tasks, answers, adapter=adapter_hash(lm.model))
    assert likelihoods(adapted) != likelihoods(base)
    assert likelihoods(score(lm, tasks, None)) == likelihoods(adapted)
    assert likelihoods(score(lm, tasks, answers)) == likelihoods(base), "recalled, whatever the model is now"


@contextmanager
def forward_passes(lm: LanguageModel, most: int | None = None, message: str = "CUDA out of memory. Tried to allocate 2 GiB") -> Iterator[list[int]]:
    """Rows that the model reads in each pass, which are prompts and options in turn; with `most` it has memory for no more."""
    sizes: list[int] = []

    def before(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if most is not None and sizes[-1] > most:
            raise RuntimeError(message)

    handle = lm.blocks[0].register_forward_pre_hook(before)
    yield sizes
    handle.remove()


BY_TWO = [1, 2, 1, 2, 1, 2, 1, 2, 1, 1]
"""The longest question has two options, the next one four, the last one three."""


def test_out_of_memory_halves_the_batch_and_changes_no_answer(lm: LanguageModel, tasks: tuple[TaskInstance, ...], answers: AnswerCache) -> None:
    expected = score(lm, tasks, None, batch_size=2)
    with forward_passes(lm, most=2) as sizes, scorer(lm, answers) as made:
        found = made.score(lm.model, tasks, None)
        assert (made.batch_size, made._bar.n) == (2, OPTIONS)
    assert sizes == [2, 6, 1, 2, 1, 4, *BY_TWO]
    assert found.samples == expected.samples
    whole = score(lm, tasks, None, batch_size=8)
    for one, other in zip(likelihoods(found), likelihoods(whole), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_bar_goes_back_where_a_task_begins_anew(lm: LanguageModel, tasks: tuple[TaskInstance, ...]) -> None:
    with forward_passes(lm, most=2) as sizes, scorer(lm, None, 4) as made:
        made.score(lm.model, tasks, None)
        assert made._bar.n == OPTIONS
    assert sizes == [1, 2, 1, 4, *BY_TWO]


def test_what_a_smaller_batch_answered_is_kept_under_the_size_that_was_asked_for(lm: LanguageModel, answers: AnswerCache, tmp_path: Path) -> None:
    first, second = load(tmp_path), load(tmp_path, ITEMS[:2])
    with forward_passes(lm, most=2), scorer(lm, answers) as made:
        made.score(lm.model, first, None)
        made.score(lm.model, second, "adapter")
    with forward_passes(lm) as sizes:
        score(lm, first, answers)
        score(lm, second, answers, adapter="adapter")
    assert sizes == []


def test_a_smaller_batch_is_kept_for_the_tasks_behind(lm: LanguageModel, tasks: tuple[TaskInstance, ...]) -> None:
    with forward_passes(lm, most=2) as sizes, scorer(lm, None) as made:
        made.score(lm.model, tasks * 2, None)
        made.score(lm.model, tasks, None)
    assert sizes == [2, 6, 1, 2, 1, 4, *BY_TWO * 3]


def test_a_single_option_that_does_not_fit_is_an_error(lm: LanguageModel, tasks: tuple[TaskInstance, ...], answers: AnswerCache) -> None:
    with forward_passes(lm, most=0) as sizes, scorer(lm, answers) as made, pytest.raises(RuntimeError, match="CUDA out of memory"):
        made.score(lm.model, tasks, None)
    assert sizes == [2, 1, 1, 1]
    assert kept(answers) == []


def test_other_errors_are_raised_at_once(lm: LanguageModel, tasks: tuple[TaskInstance, ...]) -> None:
    with (
        forward_passes(lm, most=2, message="device-side assert triggered") as sizes,
        scorer(lm, None) as made,
        pytest.raises(RuntimeError, match="device-side"),
    ):
        made.score(lm.model, tasks, None)
    assert sizes == [2, 6]


def test_an_interrupted_evaluation_keeps_its_finished_tasks(lm: LanguageModel, tmp_path: Path, answers: AnswerCache) -> None:
    first, second = load(tmp_path), load(tmp_path, [{"question": "Bread is made of", "choices": ["flour", "sand"], "answer": 0}])
    seen: list[int] = []

    def interrupt(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))
        if len(seen) == 5:  # the first task took four
            raise KeyboardInterrupt

    handle = lm.blocks[0].register_forward_pre_hook(interrupt)
    with scorer(lm, answers) as made, pytest.raises(KeyboardInterrupt):
        made.score(lm.model, [*first, *second], None)
    handle.remove()
    assert len(kept(answers)) == 1
    with forward_passes(lm) as sizes:
        score(lm, [*first, *second], answers)
    assert sizes == [1, 2]


# --- how many at once ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "longest", "expected"),
    [
        # A token of the model below takes 2 * 3 layers * 32 (keys and values) + 3 * 48 + 8 * 32 numbers of 4 bytes: 2,368 bytes.
        (2 << 30, 64, 64),  # 14,170: at most 64
        (1_500_000, 64, 8),  # 9.9
        (1_500_000, 20, 16),  # 31.7
        (1_500_000, 500, 8),  # cut to the context of 64
        (100_000, 64, 1),  # 0.7: at least one
    ],
)
def test_the_batch_size_follows_from_shapes(
    budget: int, longest: int, expected: int, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loglikelihoods, "_CPU_BUDGET", budget)
    tasks = load(tmp_path, [{"question": "x" * (longest - 4), "choices": ["no", "yes"], "answer": 0}])  # and ` yes`
    assert batch_size_for(lm, tasks) == expected


def test_a_letter_may_be_several_tokens(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loglikelihoods, "_CPU_BUDGET", 1_500_000)
    sizes = [batch_size_for(lm, load(tmp_path, [{"question": letter * 16, "choices": ["no", "yes"], "answer": 0}])) for letter in ("x", "അ")]
    assert sizes == [16, 8], "20 and 52 bytes"


# --- what no answer can be told by ---------------------------------------------------------------------------------------------------------------


def test_likelihoods_that_are_no_numbers_are_no_answers(lm: LanguageModel, tasks: tuple[TaskInstance, ...]) -> None:
    lm.model.model.norm.weight.data[0] = float("nan")
    lm.identity["dtype"] = "float16"
    with pytest.raises(UserError, match=r"tasks: 9 of 9 options of 'quiz_en' have no finite log-likelihood, .* use model\.dtype=bfloat16 or float32"):
        score(lm, tasks, None)


@pytest.mark.parametrize("pad", [None, "<far>"])
def test_the_padding_of_the_tokenizer_changes_no_answer(pad: str | None, lm: LanguageModel, tasks: tuple[TaskInstance, ...]) -> None:
    expected = likelihoods(score(lm, tasks, None))
    tokenizer: Any = copy.deepcopy(lm.tokenizer)
    if pad is None:
        tokenizer.pad_token = None
    else:
        tokenizer.add_special_tokens({"pad_token": pad})
    other = dataclasses.replace(lm, tokenizer=tokenizer, tokens=Tokens(tokenizer, lm.tokens.context, rows=259))
    before = len(tokenizer), identity_of(other, None)
    assert likelihoods(score(other, tasks, None)) == expected
    assert (len(tokenizer), identity_of(other, None)) == before, "lm-eval has added nothing to it"


def test_tokens_of_questions_beyond_the_embedding_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    tokenizer: Any = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["\N{SNOWMAN}"])
    other = dataclasses.replace(lm, tokenizer=tokenizer, tokens=Tokens(tokenizer, lm.tokens.context, rows=259))
    tasks = load(tmp_path, [{"question": "Snow \N{SNOWMAN} is", "choices": ["white", "red"], "answer": 0}])
    with pytest.raises(UserError, match=r"gives the token 259 .* in a question of the benchmark \(.*\), and the model's embedding ends at 258"):
        score(other, tasks, None)
