"""An adapter is pushed to a hub on this machine and comes back as it was; and what goes wrong on the way."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from packaging.version import Version
from sae_lens import SAE

from lingact.cli import main as cli
from lingact.cli import share as sharing
from lingact.cli.share_paths import shareable
from lingact.config.base import asset
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.models.adapter_sources import IDENTITY, SETTINGS, WEIGHTS, find_adapter, training_of
from tests.helpers.folders import plant, snapshot
from tests.helpers.hub_server import COMMIT, HubServer, serving
from tests.helpers.paths import CONF
from tests.helpers.processes import Start, unused_port

NAME, BASE = "jane/organism-malayalam", "jane/organism"
SMALL = ("languages.high=[]", "languages.low=[ml,hi]", "tracking=none", "tracking.entity=secret-team")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")  # between the hub's client and its own
SENT = {"README.md", SETTINGS, WEIGHTS, IDENTITY, "config.yaml", "manifest.json"}


@pytest.fixture(scope="module")
def runs(start: Start, small_toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A training run, an evaluation of it, and what stands on the command line of evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    assert start("train", folder / "train", "lang=ml", *SMALL, "trainer.steps=3") == 0
    given = [*SMALL, "resamples=100", "tasks.limit=6", "corpus.max_sentences=40", "cache=null", f"model.name={small_toy_model}/model"]
    given += [f"corpus.path={small_toy_model}/corpus.jsonl"]
    assert cli.main("eval", CONF, [*given, f"adapter={folder}/train", f"hydra.run.dir={folder}/eval"]) == 0
    return folder / "train", folder / "eval", given


@pytest.fixture
def trained(runs: tuple[Path, Path, list[str]], tmp_path: Path) -> Path:
    return shutil.copytree(runs[0], tmp_path / "train")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub in the place of the real one, where the user is logged in as jane."""
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub") as server:
        server.writers = {"hf_jane": ("jane",)}
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_jane")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server


@pytest.fixture
def share(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`share(run, arguments...)`: the address of what was pushed, or what is said of a mistake."""

    def run(folder: Path, *arguments: str, name: str = NAME, base: str = BASE, licence: str = "mit") -> str:
        given = [f"--base-model={base}"] if base else []
        given += [f"--license={licence}"] if licence else []
        capsys.readouterr()
        code = sharing.main([str(folder), name, *given, *arguments])
        printed = capsys.readouterr()
        problem = printed.err.rpartition("sharing: ")[2] if "sharing: " in printed.err else ""  # behind the bar of the upload
        assert code == (2 if problem else 0)
        return (problem or printed.out).strip()

    return run


def same_tables(first: Path, second: Path, *, but: set[str]) -> None:
    names = {path.name for path in (first / "tables").iterdir()}
    assert names == {path.name for path in (second / "tables").iterdir()} > but
    for name in names - but:
        pd.testing.assert_frame_equal(pd.read_csv(first / "tables" / name), pd.read_csv(second / "tables" / name))


def test_what_is_pushed_comes_back(
    runs: tuple[Path, Path, list[str]], trained: Path, server: HubServer, share: Callable[..., str], start: Start, tmp_path: Path
) -> None:
    assert share(trained) == f"written: {trained}/hub (the card is README.md)\npushed: {server.url}/{NAME}/commit/{COMMIT}"
    assert server.commits == [(NAME, sorted(SENT))]
    assert server.private == set()

    assert cli.main("eval", CONF, [*runs[2], f"adapter={NAME}", f"hydra.run.dir={tmp_path}/eval"]) == 0
    here, there = (json.loads((folder / "manifest.json").read_text())["identity"]["adapter"] for folder in (runs[1], tmp_path / "eval"))
    assert there == {"name": NAME, "sha256": here["sha256"]}
    # The text that it was trained on is named, but does not travel: how much of it the benchmarks hold cannot be checked there.
    same_tables(runs[1], tmp_path / "eval", but={"contamination.csv"})
    (reason,) = pd.read_csv(tmp_path / "eval/tables/contamination.csv")["reason"].unique()
    assert "corpus.jsonl (not shared, sha256 " in reason

    for place, adapter in (("here", str(trained)), ("there", f"{NAME}@{COMMIT}")):
        assert start("analyze", tmp_path / place, f"adapter={adapter}", *SMALL, "corpus.max_sentences=40", "split=all") == 0
    same_tables(tmp_path / "here", tmp_path / "there", but=set())


def test_nothing_private_is_sent(
    runs: tuple[Path, Path, list[str]], trained: Path, share: Callable[..., str], small_toy_model: Path, tmp_path: Path
) -> None:
    evaluated = shutil.copytree(runs[1], tmp_path / "eval")
    contamination = pd.read_csv(evaluated / "tables" / "contamination.csv")
    assert str(small_toy_model) in contamination["corpus"][0]
    contamination.assign(same_source="FLORES", reason=f"there is no file '{small_toy_model}/gone'").to_csv(
        evaluated / "tables" / "contamination.csv", index=False
    )
    share(trained, "--dry-run", f"--eval={evaluated}")
    assert {path.name for path in (trained / "hub").iterdir()} == SENT
    told = {name: (trained / "hub" / name).read_text() for name in SENT - {WEIGHTS}}
    for secret in ("secret-team", str(small_toy_model), str(runs[0].parent), str(Path.home()) + "/", socket.gethostname()):
        assert [name for name, text in told.items() if secret in text] == []
    assert "- LEAK: micro_arc (" in told["README.md"]
    assert "could not be checked word by word: it was not available." in told["README.md"]
    assert json.loads(told[SETTINGS])["base_model_name_or_path"] == BASE
    training = json.loads(told[IDENTITY])["training"]
    assert training == yaml.safe_load(told["config.yaml"])
    assert (training["seed"], training["lang"], training["model"]["name"]) == (0, ["ml"], BASE)
    assert not {"tracking", "cache"} & training.keys()
    sha256 = json.loads((trained / "manifest.json").read_text())["identity"]["corpus"]["sha256"]
    assert training["corpus"]["path"] == f"corpus.jsonl (not shared, sha256 {sha256[:12]})"
    assert not {"command", "wandb"} & json.loads(told["manifest.json"]).keys()


def test_the_card_tells_what_was_found(runs: tuple[Path, Path, list[str]], trained: Path, share: Callable[..., str]) -> None:
    share(trained, "--dry-run", f"--eval={runs[1]}")
    card = ModelCard.load(trained / "hub" / "README.md", ignore_metadata_errors=False)
    front = card.data.to_dict()
    assert (front["base_model"], front["library_name"], front["license"], front["language"]) == (BASE, "peft", "mit", ["en", "ml"])
    text, tables = (
        card.text,
        {name: pd.read_csv(folder / "tables" / f"{name}.csv") for folder, name in ((runs[0], "change_by_range"), (runs[1], "differences"))},
    )
    for sae_set in ("measuring", "heldout"):
        rows = tables["change_by_range"].query("sae_set == @sae_set and language == 'ml' and quantity == 'gap_closed'")
        estimate, low, high = rows[["estimate", "lo", "hi"]].round(2).iloc[0]
        assert f"| ml | {sae_set} | gap closed |  | {estimate:+.2f} [{low:.2f}, {high:.2f}] |" in text
    assert f"on {tables['change_by_range']['n'].iloc[0]} aligned sentences of the split `heldout`" in text
    row = tables["differences"].query("task == 'micro_arc' and language == 'ml' and kind == 'all' and metric == 'acc'").iloc[0]
    found = f"{row['estimate']:+.3f}" if row["estimate"] else "0.000"
    assert f"| micro_arc | ml | {row['n']} | {row['base']:.3f} | {row['adapter']:.3f} | {found} [{row['lo']:.3f}, {row['hi']:.3f}] |" in text
    assert "This is one training run (seed 0)" in text

    shutil.rmtree(trained / "tables")
    share(trained, "--dry-run")
    text = (trained / "hub" / "README.md").read_text()
    assert "**None.** The tables of this run are missing" in text
    assert "**None.** No benchmark was run for this card" in text


def test_what_was_edited_is_kept_and_nothing_is_sent_that_lies_beside(trained: Path, server: HubServer, share: Callable[..., str]) -> None:
    plant(trained, "hub/draft.txt", ".hub.new.1/x")
    mine = snapshot(trained)
    assert share(trained, "--dry-run").endswith(f"kept: {trained}/hub.before (what was there before)")
    card = trained / "hub" / "README.md"
    card.write_text(card.read_text() + "My own words.")
    assert share(trained, "--dry-run").endswith(f"kept: {trained}/hub.before_2 (what was there before)")
    assert (trained / "hub.before_2" / "README.md").read_text().endswith("My own words.")
    plant(trained, "hub/secret.txt")
    before = snapshot(trained)
    assert "kept:" not in share(trained), "the same files stay"
    assert server.commits == [(NAME, sorted(SENT))]
    assert snapshot(trained) == before
    assert {name.replace("hub.before", "hub", 1): told for name, told in before.items() if name.startswith("hub.before/")} == {
        name: told for name, told in mine.items() if name.startswith("hub/")
    }


def test_the_licence_is_the_base_models(trained: Path, share: Callable[..., str]) -> None:
    share(trained, "--dry-run", base="google/gemma-2-2b", licence="")
    card = (trained / "hub" / "README.md").read_text()
    assert "\nlicense: gemma\n" in card
    assert "Gemma is provided under and subject to the Gemma Terms of Use" in card
    said = share(trained, "--dry-run", licence="")
    assert said.startswith(f"the licence of '{BASE}' is not known here")
    assert "is not a licence name of the hub" in share(trained, "--dry-run", licence="MIT License")


def test_mistakes_are_told_before_anything_is_written(
    runs: tuple[Path, Path, list[str]], trained: Path, share: Callable[..., str], start: Start, tmp_path: Path
) -> None:
    assert share(trained, name="organism") == (
        "'organism' is not a valid name on the hub (it has no owner); write owner/name, as in jane/gemma-2-2b-malayalam"
    )
    assert "is not a valid name on the hub (" in share(trained, name="jane/a--b")
    assert share(trained, base="").startswith("the base model is the folder '")
    assert f"'{runs[1]}' was made by lingact eval; name a run folder of lingact train" in share(runs[1])
    assert "is not a run folder" in share(tmp_path)
    other = shutil.copytree(runs[1], tmp_path / "eval")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["identity"]["adapter"]["sha256"] = "0" * 64
    write_json(other / "manifest.json", manifest)
    assert "not of this adapter; name an evaluation of this adapter, or leave --eval out" in share(trained, f"--eval={other}")
    manifest = json.loads((trained / "manifest.json").read_text()) | {"status": "interrupted"}
    write_json(trained / "manifest.json", manifest)
    assert share(trained) == f"'{trained}' is not complete (status: interrupted); finish it first: lingact train resume={trained}"
    assert not (trained / "hub").exists()


def test_what_the_hub_refuses(trained: Path, server: HubServer, share: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Somebody else's.
    assert share(trained, name="john/organism") == (
        "'john/organism' was not pushed: the token may not write there; use one with write permission for 'john', or another owner"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_gone")
    assert share(trained) == f"'{NAME}' was not pushed: the hub does not accept the token; run `hf auth login` with a valid one"
    before = len(server.asked)
    monkeypatch.delenv("HF_TOKEN")
    assert share(trained).startswith("there is no token for the hub;")
    monkeypatch.setenv("HF_TOKEN", "hf_jane")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert share(trained).startswith(f"nothing was pushed: cannot reach {constants.ENDPOINT}. The folder '{trained}/hub' is ready;")
    assert len(server.asked) == before
    assert server.commits == []


def test_what_is_there_is_not_written_over(trained: Path, server: HubServer, share: Callable[..., str]) -> None:
    share(trained, "--private")
    assert server.private == {NAME}
    # The same adapter, say with a better card.
    assert "pushed: " in share(trained, licence="apache-2.0")
    name, sent = server.commits[1]
    assert name == NAME
    assert sent == ["README.md"] if Version(huggingface_hub.__version__) >= Version("2") else "README.md" in sent  # 1.5 sends the others again
    weights = server.root / NAME / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    said = share(trained)
    assert said.startswith(f"'{NAME}' already exists with other contents (adapter_config.json, adapter_model.safetensors, ")
    assert "pushed: " in share(trained, "--replace")
    server.private.clear()
    assert "already exists and is public" in share(trained, "--private")
    assert len(server.commits) == 3


def test_downloads_that_fail(trained: Path, server: HubServer, share: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    share(trained)
    with pytest.raises(UserError, match=rf"adapter: '{NAME}@v9' cannot be loaded: it has no such revision\. Look at {server.url}/{NAME}"):
        find_adapter(f"{NAME}@v9")
    server.damages = {WEIGHTS}
    with pytest.raises(UserError, match=rf"adapter: '{NAME}': the download is damaged .* and was deleted"):
        find_adapter(NAME)
    server.damages = set()
    place = find_adapter(NAME)
    assert (place / WEIGHTS).read_bytes() == (trained / "adapter" / WEIGHTS).read_bytes()
    told = training_of(place)
    assert told is not None
    assert told["seed"] == 0
    for refusal, words in (
        ("gated", "it is only available to those who accept its terms"),
        ("unknown", "it does not exist on the hub, or you have no access"),
    ):
        server.refuses = {"jane/other": refusal}
        with pytest.raises(UserError, match=rf"adapter: 'jane/other' cannot be loaded: {words}"):
            find_adapter("jane/other")
    # What was downloaded once is enough without a way to the hub, and what was not is refused at once.
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert find_adapter(NAME) == place
    with pytest.raises(UserError, match=r"cannot be loaded: cannot reach .*, and it was not downloaded before"):
        find_adapter("jane/other")


def test_places_are_left_out_and_the_packages_files_are_found_again() -> None:
    config = {
        "sae": {"measuring": {"release": asset("microworld/sae"), "id": "layer_{layer}"}, "heldout": {"release": "/data/jane/saes/", "id": "a/b"}},
        "corpus": {"kind": "files", "path": "mine/text.jsonl"},
        "train_corpus": {"kind": "hub", "dataset": "openlanguagedata/flores_plus"},
        "lang": ["ml"],
        "note": ["~/x/y", "C:\\Users\\jane\\z", "../up", "a/b", 3, None],
    }
    known = {"sae": {"measuring": {"sha256": "1" * 64}, "heldout": {"sha256": "2" * 64}}, "corpus": {"sha256": "3" * 64}}
    assert shareable(config, known) == {
        "sae": {
            "measuring": {"release": "${asset:microworld/sae}", "id": "layer_{layer}"},
            "heldout": {"release": "saes (not shared, sha256 222222222222)", "id": "a/b"},
        },
        "corpus": {"kind": "files", "path": "text.jsonl (not shared, sha256 333333333333)"},
        "train_corpus": {"kind": "hub", "dataset": "openlanguagedata/flores_plus"},
        "lang": ["ml"],
        "note": ["y (not shared)", "z (not shared)", "up (not shared)", "a/b", 3, None],
    }


# --- SAEs ------------------------------------------------------------------------------------------------------------------------------------------

SAES = (
    *("saes.width=24", "saes.k=4", "saes.tokens=2000", "saes.batch_tokens=128", "saes.buffer_tokens=512", "saes.context=32", "saes.layers=[0,2]"),
    *("quality.tokens=1000", "quality.spliced_tokens=100", "resamples=200", "tracking=none", "text.epochs=20", "batch_tokens=512"),
    "sets={english: {mix: {en: .9, hi: .1}}, equal: {mix: equal}}",
)


@pytest.fixture(scope="module")
def sae_run(small_toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes")
    rows = [json.loads(line) for line in (small_toy_model / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    for code in ("en", "hi"):
        (folder / f"{code}.txt").write_text("\n".join(row[code] for row in rows) + "\n", encoding="utf-8")
    given = [f"model.name={small_toy_model}/model", f"text.path={folder}", *SAES, f"hydra.run.dir={folder}/run"]
    assert cli.main("saes", CONF, given) == 0
    return folder / "run"


def test_sets_that_are_pushed_come_back(sae_run: Path, server: HubServer, share: Callable[..., str], start: Start, tmp_path: Path) -> None:
    run = shutil.copytree(sae_run, tmp_path / "run")
    assert share(run).endswith(f"pushed: {server.url}/{NAME}/commit/{COMMIT}")
    ((_, files),) = server.commits
    saes = {f"{name}/layer_{layer}/{file}" for name in ("english", "equal") for layer in (0, 2) for file in ("cfg.json", "sae_weights.safetensors")}
    assert set(files) == saes | {"README.md", "config.yaml", "manifest.json"}
    folder = Path(huggingface_hub.snapshot_download(NAME))
    x = torch.randn(50, 32)
    for name in ("english", "equal"):
        here, there = (SAE.load_from_disk(place / name / "layer_2") for place in (run / "sae", folder))
        assert torch.equal(here.encode(x), there.encode(x))
        assert there.cfg.metadata.model_name == BASE
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", BASE)
    assert re.search(r"en 9\d\.\d%, hi \d", card.text)
    told = "".join((folder / name).read_text() for name in files if not name.endswith(".safetensors"))
    assert str(tmp_path) not in told
    assert str(sae_run.parent) not in told
    few = ["languages.high=[]", "languages.low=[hi]", "tracking=none", "sae.layers=[0,2]", "sae.heldout=null"]
    from_hub = [f"sae.measuring.release={NAME}", "sae.measuring.id='equal/layer_{layer}'"]
    for place, given in (("here", [f"sae.measuring.release={run}/sae/equal"]), ("there", from_hub)):
        assert start("analyze", tmp_path / place, *few, *given) == 0
    first, second = (pd.read_csv(tmp_path / place / "tables" / "gap_by_layer.csv") for place in ("here", "there"))
    pd.testing.assert_frame_equal(first, second)


def test_one_set_is_pushed(sae_run: Path, share: Callable[..., str], tmp_path: Path) -> None:
    run = shutil.copytree(sae_run, tmp_path / "run")
    share(run, "--dry-run", "--set=equal")
    assert {path.name for path in (run / "hub").iterdir()} == {"equal", "README.md", "config.yaml", "manifest.json"}
    assert "english" not in (run / "hub" / "README.md").read_text()
    assert share(run, "--set=other") == f"--set: '{run}' has no set other; it has english, equal"
    assert share(run, f"--eval={run}") == "--eval: is for adapters; leave it out"
    assert share(run, "--dry-run", base="").startswith("the base model is the folder")
    shutil.rmtree(run / "sae")
    assert "has no SAEs, or they were removed" in share(run)


def test_sets_are_chosen_of_saes_alone(trained: Path, share: Callable[..., str]) -> None:
    assert share(trained, "--set=equal") == "--set: is for runs of lingact saes; leave it out"
