"""SAEs of one's own: text, mix, windows, buffer, and training that can be interrupted."""

import gzip
import json
import lzma
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationWhitening
from sae_lens.training.sae_trainer import SAETrainer

from lingact.activations.features import kept_residuals, largest_dimensions
from lingact.activations.measurement import Measurement
from lingact.config.model import sae_set_in
from lingact.config.saes import FilesText, HubText, SaeMix, SaeTraining
from lingact.config.training import LoraAdapter
from lingact.errors import UserError
from lingact.models.adapters import attach_adapter
from lingact.models.lm import LanguageModel
from lingact.models.sae import Dictionary, load_dictionaries
from lingact.runtime import interrupts
from lingact.saes import trainers as module
from lingact.saes.buffer import ShuffleBuffer
from lingact.saes.checkpoints import Checkpoints
from lingact.saes.engine import Reader, Start, train_sets
from lingact.saes.mix import Schedule, make_schedule, most_windows
from lingact.saes.quality import Intervals, Judge, fit_table, heldout_corpora, mix_effects_table, overlap_table
from lingact.saes.text import Document, read_running_text
from lingact.saes.trainers import SetTrainer
from lingact.saes.whitening import partly_whitened
from lingact.saes.windows import packed
from tests.helpers import hub

COLUMNS = {"text": "text", "language": "language", "source": "source", "document": "document"}


def text_config(path: Path, **changes: Any) -> FilesText:
    return FilesText.model_validate({"kind": "files", "path": path, "heldout": 0.2, "epochs": 1, **COLUMNS, **changes})


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


ROWS = [{"language": code, "text": f"{code} {number} text", "source": "ab"[number % 2]} for code in ("en", "ml") for number in range(50)]


# --- text ------------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pack"), [("t.jsonl", bytes), ("t.jsonl.gz", gzip.compress), ("t.jsonl.xz", lzma.compress)])
def test_text_is_read_and_documents_are_held_out(tmp_path: Path, name: str, pack: Any) -> None:
    (tmp_path / name).write_bytes(pack(jsonl(ROWS)))
    found = read_running_text(text_config(tmp_path / name))
    for code in ("en", "ml"):
        whole = Counter(text for side in (found.training, found.heldout) for document in side[code] for text in document.texts)
        assert whole == Counter(row["text"] for row in ROWS if row["language"] == code)
        assert 3 <= len(found.heldout[code]) <= 20
    grown = [*ROWS, {"language": "en", "text": "one more", "source": "a"}]
    (tmp_path / "grown.jsonl").write_bytes(jsonl(grown))
    more = read_running_text(text_config(tmp_path / "grown.jsonl"))
    assert set(found.heldout["en"]) <= set(more.heldout["en"]), "what was held out stays so"
    assert more.sha256 != found.sha256


def test_texts_of_a_document_stay_together_and_files_may_name_the_language(tmp_path: Path) -> None:
    (tmp_path / "ml.jsonl").write_bytes(jsonl([{"text": f"t{n}", "document": n // 5} for n in range(100)]))
    (tmp_path / "hi.txt").write_text("".join(f"line {n}\n\n" for n in range(30)))
    found = read_running_text(text_config(tmp_path))
    assert set(found.training) == {"hi", "ml"}
    documents = [*found.training["ml"], *found.heldout["ml"]]
    assert sorted(document.texts for document in documents) == sorted(tuple(f"t{5 * n + k}" for k in range(5)) for n in range(20))
    assert len(found.training["hi"]) + len(found.heldout["hi"]) == 30


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.jsonl", b"", "has no text"),
        ("t.jsonl", b'{"text": "a"}\n', "no language"),
        ("t.jsonl", b'{"text": "a", "language": "tlh"}\n', "'tlh' is not a language code"),
        ("t.jsonl", b'{"language": "en"}\n', r"line 1: no text in the column 'text' \(text.text\); columns: language"),
        ("t.jsonl", b'{"language": "en", "text": "  "}\n', "line 1: the text is empty"),
        ("t.jsonl", b'{"language": "en", "text": 5}\n', "no text in the column"),
        ("t.jsonl", b'{"language": "en", "text": "a\n', "line 1: not JSON"),
        ("t.jsonl", b"[1]\n", "not an object"),
        ("en.txt", b"a\nb\0c\n", "line 2: a NUL byte"),
        ("en.txt", b"x" * 10_000_000, "line 1: longer than 1,000,000 bytes"),
        ("en.txt", b"a\n\xff\n", "line 2: not UTF-8"),
        ("en.txt.gz", b"nothing", "cannot be read"),
        ("en.txt.xz", lzma.compress(b"a\n" * 1000)[:-9], "cannot be read"),
        ("t.csv", b"a", "ends neither in .jsonl nor in .txt"),
    ],
)  # fmt: skip
def test_text_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_running_text(text_config(tmp_path / name))


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; name a file"):
        read_running_text(text_config(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no .jsonl or .txt file"):
        read_running_text(text_config(tmp_path / "empty"))


def hub_text(**changes: Any) -> HubText:
    given = {"kind": "hub", "dataset": "a/b", "revision": None, "licence": "x", "split": "train", "characters": 400}
    given |= {"subset": "2023.{language}", "files": None}
    columns = {name: COLUMNS[name] for name in ("text", "source", "document")}
    return HubText.model_validate(given | columns | {"languages": ["en", "ml"], "heldout": 0.2, "epochs": 1} | changes)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parts = {}
    for code in ("en", "ml"):
        rows = [
            {"text": f"{code} {number:04} text " * 2 if number > 1 else [" ", None][number], "document": str(number // 2)} for number in range(200)
        ]
        parts[f"2023.{code}"] = {"train": rows}
    hub.write_dataset(tmp_path / "a/b", parts, "jsonl")


def test_text_of_a_data_set_is_read_as_far_as_it_is_wanted(data_set: None) -> None:
    found = read_running_text(hub_text())
    assert set(found.training) == {"en", "ml"}
    for code in ("en", "ml"):
        texts = [text for document in (*found.training[code], *found.heldout[code]) for text in document.texts]
        assert 400 <= sum(map(len, texts)) < 400 + 30
        assert min(texts) == f"{code} 0002 text " * 2, "rows without text are left out"
    assert {len(document.texts) for document in found.training["en"]} <= {1, 2}
    assert read_running_text(hub_text(characters=800)).sha256 != found.sha256


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"languages": ["en", "hi"]}, r"text 'a/b' \(x\) has nothing for hi: no configuration '2023.hi'. Leave hi out, or choose another text"),
        ({"text": "body"}, r"has no column body in '2023.en' \(there: .*text.*\)"),
    ],
)
def test_a_data_set_that_does_not_fit_is_refused(changes: dict[str, Any], told: str, data_set: None) -> None:
    with pytest.raises(UserError, match=told):
        read_running_text(hub_text(**changes))


@pytest.mark.parametrize(
    ("subset", "files", "said"), [("train", None, "'train'"), ("train", "*.jsonl", r"'train' and '\*.jsonl'"), (None, None, "neither")]
)
def test_a_subset_or_files_name_the_language(subset: str | None, files: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=rf"{said}.* has no \{{language\}}; mark the place of the code"):
        hub_text(subset=subset, files=files)


def test_codes_of_other_data_sets() -> None:
    config = hub_text(subset="{flores}", files="{iso3}/{language}_*.parquet")
    assert (config.of_language(config.subset, "ml"), config.of_language(config.files, "ml")) == ("mal_Mlym", "mal/ml_*.parquet")


# --- mix -------------------------------------------------------------------------------------------------------------------------------------------

MIXES = {"some": SaeMix(mix={"en": 0.6, "hi": 0.4}, seed=0), "equal": SaeMix(mix="equal", seed=0), "english": SaeMix(mix={"en": 1.0}, seed=0)}


def schedule(windows: int = 1000) -> Schedule:
    return make_schedule(MIXES, {"en": 2000, "hi": 600, "ml": 400}, windows=windows, epochs=1, window_tokens=10, seed=3)


def test_each_set_gets_its_languages_evenly_over_its_training() -> None:
    found = schedule()
    shares = [{"en": 600, "hi": 400}, {"en": 333, "hi": 333, "ml": 333}, {"en": 1000}]
    for column, wanted in enumerate(shares):
        mine = found.language[found.member[:, column]]
        assert {found.codes[place]: count for place, count in Counter(mine.tolist()).items()} == wanted
        # A tenth of the training has about a tenth of every language.
        for part in np.array_split(mine, 10):
            for code, count in wanted.items():
                assert abs((part == found.codes.index(code)).sum() - count / 10) <= 0.25 * count / 10 + 3


def test_text_that_sets_share_comes_in_one_order_and_is_read_once() -> None:
    found = schedule()
    assert len(set(zip(found.language.tolist(), found.window.tolist(), strict=True))) == len(found.window)
    assert most_windows(MIXES, found.codes, 1000) == {"en": 1000, "hi": 400, "ml": 333}
    assert len(found.window) == 1000 + 400 + 333
    english = found.language == found.codes.index("en")
    assert found.member[english, 2].all()
    assert (np.diff(found.window[english]) == 1).all(), "the windows of a language come in their own order"


def test_too_little_text_is_told_with_figures() -> None:
    told = r"ml has 400 tokens to train on, and 3,330 are wanted \(text.epochs=9 would read them so often\)"
    with pytest.raises(UserError, match=told):
        make_schedule(MIXES, {"en": 2000, "hi": 600, "ml": 40}, windows=1000, epochs=1, window_tokens=10, seed=3)
    assert make_schedule(MIXES, {"en": 2000, "hi": 600, "ml": 40}, windows=1000, epochs=9, window_tokens=10, seed=3).window.max() == 999
    with pytest.raises(UserError, match="the text has no hi; it has en"):
        make_schedule({"a": MIXES["some"]}, {"en": 2000}, windows=10, epochs=1, window_tokens=10, seed=3)


def test_shares_have_to_add_up() -> None:
    with pytest.raises(ValueError, match=r"the shares add up to 1.1; they have to add up to 1"):
        SaeMix(mix={"en": 0.6, "hi": 0.5})
    with pytest.raises(ValueError, match="klingon"):
        SaeMix(mix={"klingon": 1.0})


# --- windows and buffer ----------------------------------------------------------------------------------------------------------------------------


def test_sources_give_in_equal_parts(lm: LanguageModel) -> None:
    documents = [Document((f"{source}{number:03}" * 3,), source) for source, count in (("a", 400), ("b", 100), ("c", 5)) for number in range(count)]
    found = packed(documents, lm.tokens, room=15, at_most=100, seed=0)
    assert found.rows.shape == (100, 15)
    by_source = dict(zip(found.sources, found.by_source.sum(axis=0).tolist(), strict=True))
    assert by_source["c"] == 5 * 13, "all that it has"
    assert abs(by_source["a"] - by_source["b"]) <= 26
    assert (found.by_source.sum(axis=1) == 15).all()
    again = packed(documents, lm.tokens, room=15, at_most=50, seed=0)
    assert (again.rows == found.rows[:50]).all(), "fewer windows are the first of more"
    assert (again.by_source == found.by_source[:50, : len(again.sources)]).all()
    assert not (packed(documents, lm.tokens, room=15, at_most=50, seed=1).rows == again.rows).all()


def test_a_buffer_gives_each_residual_once_and_mixed() -> None:
    buffer = ShuffleBuffer(40, 8, seed=0)
    given = torch.arange(200.0)[:, None, None]
    batches = [batch for part in given.split(7) for batch in buffer.add(part)]
    assert len(buffer) < 40 + 8
    batches += buffer.rest()
    assert all(len(batch) == 8 for batch in batches)
    found = torch.cat(batches).flatten().tolist()
    assert sorted(found) == list(range(200))
    distances = [abs(place - value) for place, value in enumerate(found)]
    assert max(distances) > 15, "not in order"
    assert sum(distances) / len(distances) < 40, "nor from anywhere"


# --- training --------------------------------------------------------------------------------------------------------------------------------------

TRAINING = SaeTraining(
    layers=(0, 2), architecture="batchtopk", width=48, k=4, sparsity=1.0, tokens=4000, batch_tokens=64, buffer_tokens=256, context=16, lr=1e-3,
    whitening=0.5, dead_after=10, checkpoint_minutes=10,
)  # fmt: skip
SETS = {"some": SaeMix(mix={"en": 0.75, "hi": 0.25}, seed=0), "equal": SaeMix(mix="equal", seed=0), "other": SaeMix(mix="equal", seed=1, width=32)}


def reader_of(lm: LanguageModel, layers: tuple[int, ...] = (0, 2)) -> Reader:
    random = np.random.default_rng(0)
    room = TRAINING.context - 1
    # Languages that use different bytes.
    windows = {"en": random.integers(60, 110, (300, room)).astype(np.int32), "hi": random.integers(140, 200, (300, room)).astype(np.int32)}
    count = -(-(TRAINING.tokens + 128) // room)
    made = make_schedule(SETS, {code: len(rows) for code, rows in windows.items()}, windows=count, epochs=1, window_tokens=room, seed=0)
    return Reader(lm, layers, windows, made, TRAINING.context, 64)


def train_and_save(lm: LanguageModel, folder: Path, reader: Reader | None = None, training: SaeTraining = TRAINING) -> None:
    metadata = {"model_name": "tiny", "prepend_bos": True, "context_size": 16}
    found = train_sets(reader or reader_of(lm), SETS, training, metadata=metadata, header={"text": "1"}, folder=folder / "checkpoints")
    for name, trainer in found.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        trainer.save(folder / name)


def trained(lm: LanguageModel, folder: Path, reader: Reader | None = None, training: SaeTraining = TRAINING) -> dict[str, torch.Tensor]:
    """All weights, as they were saved."""
    train_and_save(lm, folder, reader, training)
    return weights_in(folder)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for name in SETS:
        for layer in (0, 2):
            sae = SAE.load_from_disk(folder / name / f"layer_{layer}")
            assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
            weights |= {f"{name}/{layer}/{key}": value for key, value in sae.state_dict().items()}
    return weights


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "topk", "jumprelu", "standard"])
def test_every_architecture_is_trained_and_loads(architecture: str, lm: LanguageModel, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"architecture": architecture, "tokens": 1000, "sparsity": 0.01})
    weights = trained(lm, tmp_path, training=training)
    assert all(value.isfinite().all() for value in weights.values())
    kind = SAE.load_from_disk(tmp_path / "equal" / "layer_2").cfg.architecture()
    assert kind == {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(architecture, architecture)
    assert weights["other/2/W_enc"].shape == (32, 32)
    # lingact's features are sae-lens's, folded with the decoder's norms.
    reader = reader_of(lm)
    residuals = reader.read(reader.passes[0])[0]
    dictionaries, _ = load_dictionaries(sae_set_in(tmp_path / "equal"), (0, 2), lm)
    for column, layer in enumerate((0, 2)):
        sae = SAE.load_from_disk(tmp_path / "equal" / f"layer_{layer}")
        for x in (residuals[:, column], torch.randn(50, 32, generator=torch.Generator().manual_seed(0))):
            expected = sae.encode(x)
            assert (expected > 0).any()
            assert torch.allclose(dictionaries[layer].encode(x), expected * sae.W_dec.norm(dim=-1), rtol=1e-4, atol=1e-5)
            assert torch.allclose(dictionaries[layer].decode(dictionaries[layer].encode(x)), sae.decode(expected), rtol=1e-4, atol=1e-4)


def test_an_interrupted_training_goes_on_to_the_same_bits(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(lm, tmp_path / "whole")
    real, reads = Reader.read, [0]
    for stop in (7, 31, 60):

        def read(self: Reader, places: Any, stop: int = stop, **given: Any) -> Any:
            reads[0] += 1
            if reads[0] == stop:
                monkeypatch.setattr(interrupts._State, "arrived", signal.SIGINT)
            return real(self, places, **given)

        monkeypatch.setattr(Reader, "read", read)
        with pytest.raises(KeyboardInterrupt, match="forward passes, with all that was trained on them"):
            trained(lm, tmp_path / "parts")
    monkeypatch.setattr(Reader, "read", real)
    torch.manual_seed(99)  # whatever else has been drawn
    parts = trained(lm, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupted_at(lm: LanguageModel, folder: Path, read: int, rank: int, interrupted_rank: int) -> str:
    """Train until one of the processes gets a signal while it reads that many passes. What is told to the user."""
    real, reads = Reader.read, [0]

    def reading(self: Reader, places: Any, **given: Any) -> Any:
        reads[0] += 1
        if reads[0] == read and rank == interrupted_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, places, **given)

    with pytest.MonkeyPatch.context() as patch, interrupts.interruptible():
        patch.setattr(Reader, "read", reading)
        with pytest.raises(KeyboardInterrupt) as told:
            train_and_save(lm, folder)
    return str(told.value)


def test_processes_train_the_same_and_any_number_goes_on(lm: LanguageModel, tmp_path: Path, apart: Callable[..., list[Any]]) -> None:
    whole, parts = trained(lm, tmp_path / "whole"), tmp_path / "parts"
    passes = len(reader_of(lm).passes)
    apart(2, lambda _: train_and_save(lm, tmp_path / "two"))
    assert same_weights(weights_in(tmp_path / "two"), whole)
    # Six SAEs: a process has two layers of a set, one, or none.
    for count, read, done in ((1, 6, 6), (2, 3, 12), (4, 3, 24), (3, 4, 36)):
        told = f"{done} of {passes} forward passes, with all that was trained on them"
        assert apart(count, lambda rank, read=read, last=count - 1: interrupted_at(lm, parts, read, rank, interrupted_rank=last)) == [told] * count
        names = {f"passes_{done}.process_{process + 1}_of_{count}.ckpt" for process in range(count)}
        assert {path.name for path in (parts / "checkpoints").iterdir()} == names
    assert same_weights(trained(lm, parts), whole)


@pytest.mark.parametrize("written", ["some of the first", "some of later ones", "all, and none is removed"])
def test_a_kill_while_checkpoints_are_written_or_removed_changes_nothing(
    written: str, lm: LanguageModel, tmp_path: Path, apart: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder, begun = trained(lm, tmp_path / "whole"), tmp_path / "checkpoints", 6
    apart(2, lambda rank: interrupted_at(lm, tmp_path, 3, rank, interrupted_rank=0))
    if written == "some of the first":
        (folder / "passes_6.process_2_of_2.ckpt").unlink()
        begun = 0
    elif written == "some of later ones":
        (folder / "passes_8.process_1_of_2.ckpt").write_bytes(b"of no use")
    else:
        earlier = {path: path.read_bytes() for path in folder.iterdir()}
        apart(2, lambda rank: interrupted_at(lm, tmp_path, 3, rank, interrupted_rank=0))
        for path, content in earlier.items():
            path.write_bytes(content)
        begun = 12
    real, reads = Reader.read, [0]

    def read(self: Reader, places: Any, **given: Any) -> Any:
        reads[0] += 1
        return real(self, places, **given)

    monkeypatch.setattr(Reader, "read", read)
    assert same_weights(trained(lm, tmp_path), whole)
    assert reads[0] == len(reader_of(lm).passes) - begun


@pytest.mark.parametrize("moment", ["a checkpoint is written", "progress is told"])
def test_a_signal_is_heard_whenever_it_comes(moment: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, moments = Checkpoints.save, [0]

    def now(at: int) -> None:
        moments[0] += 1
        if moments[0] == at:
            os.kill(os.getpid(), signal.SIGTERM)

    def save(self: Checkpoints, trainers: Any, done: int) -> None:
        real(self, trainers, done)
        if moment == "a checkpoint is written":
            now(3)

    monkeypatch.setattr(Checkpoints, "save", save)
    training = TRAINING if moment == "progress is told" else TRAINING.model_copy(update={"checkpoint_minutes": 1e-9})
    given: dict[str, Any] = {"metadata": {}, "header": {}, "folder": tmp_path, "log": lambda *_: now(1) if moment == "progress is told" else None}
    passes = len(reader_of(lm).passes)
    done = {"a checkpoint is written": 4, "progress is told": 10}[moment]
    with interrupts.interruptible(), pytest.raises(KeyboardInterrupt, match=rf"^{done} of {passes} forward passes"):
        train_sets(reader_of(lm), SETS, training, **given)
    assert [path.name for path in tmp_path.iterdir()] == [f"passes_{done}.process_1_of_1.ckpt"]


def test_progress_is_told(lm: LanguageModel, tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    train_sets(reader_of(lm), SETS, TRAINING, metadata={}, header={}, folder=tmp_path, log=lambda step, values: told.append((step, values)))
    assert [step for step, _ in told] == list(range(10, 10 * len(told) + 1, 10))
    first, last = told[1][1], told[-1][1]
    assert set(last) == {f"{what}/{name}/{layer}" for what in ("loss", "dead") for name in SETS for layer in (0, 2)}
    assert all(last[key] < first[key] for key in last if key.startswith("loss"))


def test_a_checkpoint_of_something_else_is_refused(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Reader.read

    def read(self: Reader, places: Any, **given: Any) -> Any:
        monkeypatch.setattr(interrupts._State, "arrived", signal.SIGINT)
        return real(self, places, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", read)
        with pytest.raises(KeyboardInterrupt):
            trained(lm, tmp_path)
    given = {"metadata": {}, "folder": tmp_path / "checkpoints"}
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        train_sets(reader_of(lm), SETS, TRAINING, header={"text": "2"}, **given)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert path.name == "passes_1.process_1_of_1.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated, damaged or not a checkpoint of SAEs; restore the right one, or delete it"):
        train_sets(reader_of(lm), SETS, TRAINING, header={"text": "1"}, **given)


def inputs_of(reader: Reader, power: float = 0.5) -> dict[int, ActivationWhitening]:
    sample = reader.sample()
    return {layer: partly_whitened(sample[:, column], power) for column, layer in enumerate(reader.layers)}


def test_paired_sets_begin_alike(lm: LanguageModel) -> None:
    inputs = inputs_of(reader_of(lm))
    made = {name: SetTrainer(TRAINING, mix, inputs, {}, "cpu") for name, mix in SETS.items()}
    weights = {name: trainer.trainers[2].sae.state_dict() for name, trainer in made.items()}
    assert all(torch.equal(weights["some"][key], weights["equal"][key]) for key in weights["some"])
    assert weights["other"]["W_enc"].shape != weights["equal"]["W_enc"].shape
    assert not torch.equal(made["some"].trainers[0].sae.W_enc, made["some"].trainers[2].sae.W_enc)


def test_steps_are_those_of_sae_lens(lm: LanguageModel, tmp_path: Path) -> None:
    """The same batches through sae-lens's own loop."""
    inputs = inputs_of(reader_of(lm))
    random = torch.Generator().manual_seed(0)
    batches = [3 * torch.randn(64, 2, 32, generator=random) + inputs[2].mean.float() for _ in range(TRAINING.tokens // 64)]
    ours = SetTrainer(TRAINING.model_copy(update={"buffer_tokens": 64}), SETS["some"], inputs, {}, "cpu")
    ours._buffer = ShuffleBuffer(64, 64, 0)
    for batch in batches:
        ours._step(batch)
    fresh = SetTrainer(TRAINING, SETS["some"], inputs, {}, "cpu").trainers[2]
    theirs = SAETrainer(cfg=fresh.cfg, sae=fresh.sae, data_provider=iter([batch[:, 1] for batch in batches]))
    theirs.activation_scaler.whitening = inputs[2]
    expected = theirs.fit()
    ours.save(tmp_path)
    theirs_saved = tmp_path / "theirs"
    expected.save_inference_model(theirs_saved)
    found, theirs_loaded = (SAE.load_from_disk(folder).state_dict() for folder in (tmp_path / "layer_2", theirs_saved))
    assert found.keys() == theirs_loaded.keys()
    assert all(torch.equal(value, theirs_loaded[name]) for name, value in found.items())


@pytest.mark.parametrize(("power", "spread"), [(0.0, 1e6), (0.5, 1e3), (1.0, 1.0)])
def test_whitening_evens_variances_out_as_far_as_asked(power: float, spread: float) -> None:
    random = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(8, 8, generator=random, dtype=torch.float64)).Q
    sample = (torch.randn(4000, 8, generator=random, dtype=torch.float64) * torch.logspace(0, 3, 8)) @ turned + 20_000
    found = partly_whitened(sample, power)
    scaled = (sample - found.mean) @ found.matrix
    variances = torch.linalg.eigvalsh(torch.cov(scaled.T))
    assert float(variances[-1] / variances[0]) == pytest.approx(spread, rel=0.2)
    assert float(scaled.norm(dim=-1).mean()) == pytest.approx(8**0.5)
    assert torch.allclose(scaled @ found.inverse_matrix + found.mean, sample)


def test_a_direction_without_variance_stays_finite() -> None:
    sample = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    sample[:, 3] = 7
    found = partly_whitened(sample, 1.0)
    assert ((sample - found.mean) @ found.matrix).isfinite().all()


def test_residuals_that_are_not_finite_stop_the_training(lm: LanguageModel, tmp_path: Path) -> None:
    handle = lm.blocks[2].register_forward_hook(lambda _m, _i, output: output * float("inf"))
    with pytest.raises(UserError, match=r"residuals behind the layers \[2\] are not finite in float32"):
        trained(lm, tmp_path)
    handle.remove()


def test_a_loss_that_is_not_finite_stops_the_training(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LR_AT_END", float("nan"))
    real = SAETrainer.step

    def step(self: Any, batch: torch.Tensor) -> Any:
        found = real(self, batch)
        found.loss = found.loss * float("nan")
        return found

    monkeypatch.setattr(SAETrainer, "step", step)
    with pytest.raises(UserError, match=r"the loss of the SAE of layer 0 is not finite at step 0; give a smaller saes.lr"):
        trained(lm, tmp_path)


# --- training further ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "topk", "jumprelu", "standard"])
def test_training_further_begins_with_the_saved_features(architecture: str, lm: LanguageModel, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"architecture": architecture, "tokens": 2000, "sparsity": 0.01})
    trained(lm, tmp_path, training=training)
    saved = {layer: SAE.load_from_disk(tmp_path / "equal" / f"layer_{layer}") for layer in (0, 2)}
    reader = reader_of(lm)
    inputs = inputs_of(reader, power=1.0)  # another one than that of the training
    again = SetTrainer(training, SETS["equal"], inputs, {}, "cpu", saved)
    residuals = reader.read(reader.passes[0])[0]
    for column, layer in enumerate((0, 2)):
        x = residuals[:, column]
        sae, scaler = again.trainers[layer].sae, again.trainers[layer].activation_scaler
        z = scaler.scale(x)
        pre = sae.encode_with_hidden_pre(z)[1]
        norms = (saved[layer].W_dec.double() @ inputs[layer].matrix).norm(dim=-1).float()
        raw = (x - saved[layer].b_dec) @ saved[layer].W_enc + saved[layer].b_enc
        assert torch.allclose(pre, raw * norms, rtol=1e-3, atol=1e-4)
        ours = scaler.unscale(sae.decode(torch.relu(pre)))
        theirs = torch.relu(raw) @ saved[layer].W_dec + saved[layer].b_dec
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)
        if architecture == "jumprelu":
            assert torch.allclose(sae.threshold, saved[layer].threshold * norms, rtol=1e-4)


def test_refitting_to_an_adapter_that_changes_nothing_changes_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    trained(lm, tmp_path)
    saved = {name: {layer: SAE.load_from_disk(tmp_path / name / f"layer_{layer}") for layer in (0, 2)} for name in SETS}
    places: dict[str, Any] = {"targets": ("q_proj", "down_proj"), "layers": "all"}
    peft = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.0, use_rslora=False, use_dora=False, init="default", **places)
    lm.model = attach_adapter(lm.model, lm.blocks, peft, 0)

    def refitted(folder: str) -> dict[str, torch.Tensor]:
        given = {"metadata": {}, "header": {}, "folder": tmp_path / folder, "start": Start(saved, refit=True)}
        found = train_sets(reader_of(lm), SETS, TRAINING, **given)
        assert list(found) == [f"{name}_{model}" for name in SETS for model in ("base", "adapted")]
        return {name: trainer.trainers[2].sae.W_dec.detach() for name, trainer in found.items()}

    first = refitted("first")
    begun = SetTrainer(TRAINING, SETS["equal"], inputs_of(reader_of(lm), TRAINING.whitening), {}, "cpu", saved["equal"]).trainers[2].sae.W_dec
    assert not torch.equal(first["equal_base"], begun), "it was trained further"
    assert all(torch.equal(first[f"{name}_base"], first[f"{name}_adapted"]) for name in SETS)
    with torch.no_grad():
        for name, value in lm.model.named_parameters():
            if "lora_B" in name:
                value.fill_(0.05)
    second = refitted("second")
    assert all(torch.equal(first[f"{name}_base"], second[f"{name}_base"]) for name in SETS), "the base model is the same"
    assert not any(torch.equal(second[f"{name}_base"], second[f"{name}_adapted"]) for name in SETS)


# --- judging ---------------------------------------------------------------------------------------------------------------------------------------


def test_held_out_text_is_as_long_as_asked_for(lm: LanguageModel) -> None:
    documents = {"en": [Document(("a" * 9, "b" * 9), "")] * 50}
    found = heldout_corpora(documents, lm, 100)["en"]
    assert len(found.ids) == 10, "two texts of ten tokens each a document"
    assert found.documents == tuple(f"en-{place // 2}" for place in range(10))
    with pytest.raises(UserError, match=r"en has 1 held-out documents; give more text, or a larger text.heldout"):
        heldout_corpora({"en": documents["en"][:1]}, lm, 100)


def test_overlap_is_that_of_the_nearest_direction(make_sae: Any) -> None:
    one, other = make_sae(0, width=6), make_sae(0, width=6)
    other.W_dec.data = -3 * one.W_dec.data[torch.tensor([5, 4, 3, 2, 1, 0])]
    other.W_dec.data[:3] *= -1  # the opposite direction is another one
    found = overlap_table({"a": {0: Dictionary(one, 0)}, "b": {0: Dictionary(other, 0)}})
    assert found[["set_a", "set_b", "layer"]].to_dict("records") == [
        {"set_a": "a", "set_b": "b", "layer": 0},
        {"set_a": "b", "set_b": "a", "layer": 0},
    ]
    assert (found["shared"] == 0.5).all()
    assert (found["mean_cosine"] > 0.5).all()
    assert (found["mean_cosine"] < 0.9).all()
    assert overlap_table({"a": {0: Dictionary(one, 0)}}).empty


SEEDED = {
    "a0": SaeMix(mix={"en": 0.9, "hi": 0.1}, seed=0), "a1": SaeMix(mix={"en": 0.9, "hi": 0.1}, seed=1),
    "b0": SaeMix(mix="equal", seed=0), "b1": SaeMix(mix="equal", seed=1), "other": SaeMix(mix="equal", seed=0, width=24),
}  # fmt: skip
INTERVALS = Intervals(resamples=200, confidence=0.95, seed=0)


@pytest.fixture
def judged(lm: LanguageModel, make_sae: Any, tmp_path: Path) -> tuple[Judge, dict[str, Any], dict[str, Measurement]]:
    sae_sets = {
        name: {0: Dictionary(make_sae(number, width=24 if name == "other" else 48, hook="blocks.0.hook_resid_post"), 0)}
        for number, name in enumerate(SEEDED)
    }
    documents = {
        code: [Document(tuple(f"{letter * (3 + number)} {line}" for line in range(3)), "") for number in range(6)]
        for code, letter in (("en", "a"), ("hi", "z"))
    }
    corpora = heldout_corpora(documents, lm, 1000)
    judge = Judge(lm, sae_sets, 64, {"model": "0"}, tmp_path / "stats")
    return judge, corpora, judge.fit(corpora)


def test_fit_without_the_largest_dimensions(judged: tuple[Judge, dict[str, Any], dict[str, Measurement]]) -> None:
    judge, corpora, measured = judged
    found = fit_table(measured, judge.views, INTERVALS).set_index(["sae_set", "language", "quantity"])["estimate"]
    residuals = {code: all_residuals(judge.lm, list(corpus.texts[code])) for code, corpus in corpora.items()}
    excluded = largest_dimensions(torch.cat(list(residuals.values())))
    assert excluded.sum() == 1
    for name, dictionaries in judge.sae_sets.items():
        for code, x in residuals.items():
            error, centred = x - dictionaries[0].decode(dictionaries[0].encode(x)), x - x.mean(dim=0)
            for quantity, kept in (("fvu", torch.ones(32, dtype=torch.bool)), ("fvu_without_largest", ~excluded)):
                expected = float(error[:, kept].square().sum() / centred[:, kept].square().sum())
                assert found[name, code, quantity] == pytest.approx(expected, rel=1e-4)
                assert found[name, code, quantity.replace("fvu", "explained_variance")] == pytest.approx(1 - expected, rel=1e-3, abs=1e-4)


def all_residuals(lm: LanguageModel, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([kept_residuals(lm, batch, (0,))[0][0] for batch in lm.tokens.batches(lm.tokens.windows(texts), 64)])


def test_mixes_are_compared_beside_their_seeds(judged: tuple[Judge, dict[str, Any], dict[str, Measurement]]) -> None:
    judge, _, measured = judged
    fvu = fit_table(measured, judge.views, INTERVALS).query("quantity == 'fvu'").set_index(["sae_set", "language"])["estimate"]
    table = mix_effects_table(measured, SEEDED, INTERVALS)
    assert set(zip(table["mix_a"], table["mix_b"], strict=True)) == {("a0", "b0")}, "sets of another width are no pair"
    for row in table.to_dict("records"):
        a0, a1, b0, b1 = (fvu[name, row["language"]] for name in ("a0", "a1", "b0", "b1"))
        assert row["estimate"] == pytest.approx((a0 + a1 - b0 - b1) / 2)
        assert row["seed_spread"] == pytest.approx(max(abs(a0 - a1), abs(b0 - b1)))
        sure = (row["lo"] > 0 or row["hi"] < 0) and abs(row["estimate"]) > row["seed_spread"]
        assert row["beyond_seeds"] == sure
    one = {name: mix for name, mix in SEEDED.items() if name != "b1"}
    table = mix_effects_table(measured, one, INTERVALS)
    assert table["beyond_seeds"].isna().all()
    assert table["seed_spread"].isna().all()
