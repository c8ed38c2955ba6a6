"""Where adapters come from: W&B, by the real client from an imitation of the server on this machine; sweep folders; and what run folders tell."""

import gc
import itertools
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
import yaml
from torch import Tensor

from lingact.config.base import asset
from lingact.config.training import LoraAdapter
from lingact.errors import UserError
from lingact.files.atomic import full_disk, write_json
from lingact.hub import wandb_artifacts
from lingact.models import adapters
from lingact.models.adapter_hashes import weights_hash
from lingact.models.adapter_sources import IDENTITY, SETTINGS, WEIGHTS, expand_adapters, find_adapter, training_of
from lingact.models.adapters import attach_adapter, load_adapter, save_adapter
from lingact.models.lm import LanguageModel
from tests.helpers.folders import plant, snapshot, untouched
from tests.helpers.tiers import first_of
from tests.helpers.wandb_server import ENTITY, KEY, Artifact, WandbServer, serve

PEFT = LoraAdapter(kind="lora", r=2, alpha=4, dropout=0.0, use_rslora=False, use_dora=False, init="gaussian", targets=("q_proj",), layers="all")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the client leaves them behind where it fails
FILES = {SETTINGS, WEIGHTS, IDENTITY}
NAME = f"{ENTITY}/gaps/adapter-ml:latest"


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.arange(3, 13)[None]).logits


@pytest.fixture
def trained(lm: LanguageModel, tmp_path: Path) -> tuple[dict[str, bytes], Tensor]:
    """The files of an adapter of `lm`, and its logits. The model is as it was."""
    base = weights_hash(lm.model)
    lm.model = attach_adapter(lm.model, lm.blocks, PEFT, seed=1)
    for name, parameter in lm.model.named_parameters():
        parameter.data += 0.05 * ("lora_B" in name)
    save_adapter(lm.model, tmp_path / "saved", "tiny", base)
    adapted = logits(lm)
    lm.model = adapters.unload_adapter(lm.model)
    assert not torch.equal(logits(lm), adapted)
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}, adapted


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of W&B, in an environment without a key; what the client has read of another one is forgotten."""
    wandb.teardown()  # first: it drops WANDB_SERVICE, which would otherwise be put back and name a service that is gone
    for name in list(os.environ):
        if (name.startswith("WANDB_") and name != "WANDB_SILENT") or name.lower() in ("http_proxy", "https_proxy", "netrc"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(wandb_artifacts, "ANSWERS", 5)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with serve() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield running
        unanswered = bool(running.stalls or running.sends)
    wandb.teardown()
    if unanswered:
        gc.collect()


@pytest.fixture
def logged(server: WandbServer, trained: tuple[dict[str, bytes], Tensor]) -> WandbServer:
    """Has the trained adapter with a pickle beside it, as version and under an alias."""
    artifact = Artifact(trained[0] | {"adapter_model.bin": b"pickle"})
    server.artifacts |= {"gaps/adapter-ml:v0": artifact, "gaps/adapter-ml:latest": artifact}
    return server


def downloads(server: WandbServer) -> list[str]:
    return sorted(name for name in server.asked if name in FILES | {"README.md", "adapter_model.bin"})


# --- W&B artifacts -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["md5", "xxh128"])
@pytest.mark.parametrize("name", [NAME, f"{ENTITY}/gaps/adapter-ml:v0", "gaps/adapter-ml:latest"])
def test_an_artifact_is_found_and_loads(name: str, algorithm: str, logged: WandbServer, lm: LanguageModel, trained: tuple[Any, Tensor]) -> None:
    logged.artifacts["gaps/adapter-ml:v0"].algorithm = algorithm
    folder = find_adapter(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: trained[0][name] for name in FILES}
    assert downloads(logged) == sorted(FILES), "neither README nor pickle"
    lm.model = load_adapter(lm.model, name)
    assert torch.equal(logits(lm), trained[1])


def test_what_is_there_whole_is_not_downloaded_again(logged: WandbServer, cache: Path, trained: tuple[dict[str, bytes], Any]) -> None:
    folder = find_adapter(NAME)
    assert find_adapter(f"{ENTITY}/gaps/adapter-ml:v0") == folder
    assert downloads(logged) == sorted(FILES)
    assert list((cache / "lingact").iterdir()) == [folder]
    (folder / WEIGHTS).write_bytes(b"?" * len(trained[0][WEIGHTS]))
    assert find_adapter(NAME) == folder
    assert (folder / WEIGHTS).read_bytes() == trained[0][WEIGHTS]


def test_an_alias_follows_its_version(logged: WandbServer, trained: tuple[dict[str, bytes], Any]) -> None:
    before = find_adapter(NAME)
    logged.artifacts["gaps/adapter-ml:latest"] = Artifact(trained[0] | {IDENTITY: b"{}"})
    assert (find_adapter(NAME) / IDENTITY).read_bytes() == b"{}"
    assert (before / IDENTITY).read_bytes() == trained[0][IDENTITY]


def test_an_adapter_that_others_logged_needs_no_identity(logged: WandbServer) -> None:
    del logged.artifacts["gaps/adapter-ml:latest"].files[IDENTITY]
    assert {path.name for path in find_adapter(NAME).iterdir()} == {SETTINGS, WEIGHTS}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{ENTITY}/gaps/adapter-ml:v7", "'adapter-ml:v7' not found in 'team/gaps'"),
        (f"{ENTITY}/gaps/adapter-hi:latest", "'adapter-hi:latest' not found in 'team/gaps'"),
        (f"{ENTITY}/other/adapter-ml:latest", "project 'other' not found under entity 'team'"),
        ("strangers/gaps/adapter-ml:latest", "project 'gaps' not found under entity 'strangers'"),
    ],
)
def test_an_artifact_that_is_not_there_or_not_to_be_seen(name: str, reason: str, logged: WandbServer) -> None:
    with pytest.raises(
        UserError, match=rf"^adapter: '{name}' is not a folder here, and it cannot be fetched as a .* artifact from {logged.url}: .*{reason}\. "
    ):
        find_adapter(name)


@pytest.mark.parametrize(
    ("key", "reason"), [("b" * 40, "(user is not logged in|verifying the API key)"), ("short", r"API key must have 40\+ characters, has 5")]
)
def test_a_wrong_key(key: str, reason: str, logged: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(UserError, match=rf"artifact from .*: .*{reason}.* see that the key \(`wandb login` or WANDB_API_KEY\)"):
        find_adapter(NAME)


def test_without_a_key_nothing_is_asked(logged: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(
        UserError, match=rf"'{NAME}' is not a folder here, .* without a key for {logged.url}; run `wandb login` or set WANDB_API_KEY$"
    ):
        find_adapter(NAME)
    assert logged.asked == []


@pytest.mark.parametrize("file", [".netrc", "_netrc", "elsewhere"])
def test_the_key_of_wandb_login_is_found(file: str, logged: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / file).write_text(f"machine {logged.url.removeprefix('http://')}\n  login user\n  password {KEY}\n")
    if file == "elsewhere":
        monkeypatch.setenv("NETRC", str(tmp_path / file))
    assert find_adapter(NAME).is_dir()


@pytest.mark.parametrize(
    ("server", "machine", "key"),
    [
        ("https://api.wandb.ai", "api.wandb.ai", KEY),
        ("https://api.forge.coreweave.com", "api.forge.coreweave.com", KEY),
        ("https://api.forge.coreweave.com", "api.wandb.ai", KEY),
        ("https://wandb.example.org", "api.wandb.ai", None),
    ],
)
def test_a_key_is_for_its_server(server: str, machine: str, key: str | None, cache: Path, tmp_path: Path) -> None:
    """As the client has it: looked up by its own function, too, where it knows both names of the default server."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    (tmp_path / ".netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    assert wandb_artifacts.netrc_key(server) == key
    if machine in server or wandb.Settings().base_url != "https://api.wandb.ai":  # the default server before wandb 0.31
        assert read_netrc_auth(host=server) == key


def test_no_network_is_told_at_once(logged: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", address)
    with pytest.raises(UserError, match=rf"from {address}: .*Connection refused"):
        find_adapter(NAME)


@pytest.mark.parametrize("silent", first_of([WEIGHTS, "Viewer", "ArtifactMembershipByName", "manifest"]))
def test_a_server_that_does_not_answer_is_given_up(silent: str, logged: WandbServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_artifacts, "ANSWERS", 2)
    monkeypatch.setattr(wandb_artifacts, "STALLS", 1)
    logged.stalls.add(silent)
    client, limits = wandb.Api, []
    monkeypatch.setattr(wandb, "Api", lambda timeout, **more: limits.append(timeout) or client(timeout=timeout, **more))
    with pytest.raises(UserError, match=r"artifact from .*: .*(did not respond in time|no data for 1 seconds)"):
        find_adapter(NAME)
    assert limits == [2], "instead of the client's own 19 seconds"
    assert not list(cache.glob("lingact/*"))


def test_a_long_download_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second something comes, by a clock that jumps: far longer than the limit in all, and never as long without a byte."""
    monkeypatch.setattr(wandb_artifacts, "STALLS", 2)
    looks, fully = itertools.count(1), threading.Event()

    def monotonic() -> float:
        look = next(looks)
        (tmp_path / "part").write_bytes(b"." * look)
        if look == 8:
            fully.set()
        return float(look)

    monkeypatch.setattr(wandb_artifacts, "time", SimpleNamespace(monotonic=monotonic))

    def slowly() -> str:
        fully.wait()
        return "all of it"

    assert wandb_artifacts._while_it_comes(slowly, tmp_path) == "all of it"


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("algorithm", ["md5", "xxh128"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_arrives_damaged_is_noticed(name: str, algorithm: str, logged: WandbServer, cache: Path) -> None:
    artifact = logged.artifacts["gaps/adapter-ml:latest"]
    artifact.algorithm = algorithm
    logged.sends[name] = damaged(artifact.files[name])
    for _ in range(2):  # nor is it kept and taken for whole the next time
        with pytest.raises(UserError, match=rf"artifact from .*: {re.escape(name)} was damaged during download: its digest is not the one in"):
            find_adapter(NAME)
        assert not list(cache.glob("lingact/*"))
    logged.sends.clear()
    assert (find_adapter(NAME) / name).read_bytes() == artifact.files[name]


def test_a_download_that_is_cut_off_leaves_nothing(logged: WandbServer, cache: Path) -> None:
    logged.sends[WEIGHTS] = logged.artifacts["gaps/adapter-ml:latest"].files[WEIGHTS][:1000]
    with pytest.raises(UserError, match=r"artifact from .*: .*(IncompleteRead|broken)"):
        find_adapter(NAME)
    assert not list(cache.glob("lingact/*"))


@pytest.mark.parametrize("missing", [SETTINGS, WEIGHTS])
def test_an_artifact_that_is_no_adapter(missing: str, logged: WandbServer) -> None:
    del logged.artifacts["gaps/adapter-ml:latest"].files[missing]
    with pytest.raises(
        UserError, match=rf"artifact '{NAME}' is not an adapter that can be read: it has no {re.escape(missing)}; log one that contains"
    ):
        find_adapter(NAME)
    assert downloads(logged) == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_links_to_elsewhere_are_not_followed(name: str, logged: WandbServer, tmp_path: Path) -> None:
    artifact = logged.artifacts["gaps/adapter-ml:latest"]
    (tmp_path / "secret").write_bytes(artifact.files.pop(name))
    artifact.references[name] = (tmp_path / "secret").as_uri()
    with pytest.raises(UserError, match=rf"is not an adapter that can be read: its {re.escape(name)} is a link to file://.*/secret; log"):
        find_adapter(NAME)
    assert downloads(logged) == []


def test_a_full_disk_is_told_as_such(logged: WandbServer, cache: Path) -> None:
    find_adapter(NAME)  # the client's process has begun
    shutil.rmtree(cache)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            find_adapter(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full_disk(raised.value)
    assert find_adapter(NAME).is_dir()


def test_what_lies_beside_a_damaged_file_stays(logged: WandbServer, trained: tuple[dict[str, bytes], Any]) -> None:
    folder = find_adapter(NAME)
    plant(folder, "notes.txt", "mine/x")
    (folder / WEIGHTS).unlink()
    before = snapshot(folder)
    for name in (SETTINGS, IDENTITY):
        before.pop(name)
    assert find_adapter(NAME) == folder
    assert untouched(before, folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == {name: trained[0][name] for name in FILES}


def test_a_cache_that_cannot_be_is_named(logged: WandbServer, cache: Path) -> None:
    cache.touch()
    with pytest.raises(UserError, match=rf"artifact from .*: .*Not a directory: '{cache}"):
        find_adapter(NAME)


def test_nothing_is_printed(logged: WandbServer, tmp_path: Path) -> None:
    code = f"from lingact.models.adapter_sources import find_adapter; find_adapter({NAME!r})"
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_SILENT", "WANDB_SERVICE")}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert downloads(logged) == sorted(FILES)


def test_a_folder_here_comes_first(logged: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gaps" / "adapter-ml:latest").mkdir(parents=True)
    (tmp_path / "gaps" / "adapter-ml:latest" / SETTINGS).touch()
    assert find_adapter("gaps/adapter-ml:latest") == Path("gaps/adapter-ml:latest")
    assert logged.asked == []


# --- sweeps --------------------------------------------------------------------------------------------------------------------------------------


def job(sweep: Path, number: int, status: str = "complete", *, adapter: bool = True) -> str:
    """A job of train.py as Hydra's callback and the workflow leave it."""
    run = sweep / str(number)
    if adapter:
        (run / "adapter").mkdir(parents=True)
        (run / "adapter" / SETTINGS).touch()
    write_json(sweep / ".jobs" / f"{number}.json", {"job": number, "overrides": {}, "status": status, "problem": None, "folder": str(run)})
    return str(run)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Eleven complete jobs, a failed one that was saved and a refused one."""
    folder = tmp_path / "sweep"
    for number in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0):
        job(folder, number)
    job(folder, 11, "failed")
    job(folder, 12, "refused", adapter=False)
    return folder


def test_a_sweep_stands_for_its_complete_jobs_in_their_order(sweep: Path) -> None:
    runs = [str(sweep / str(number)) for number in range(11)]
    assert expand_adapters([str(sweep)]) == runs
    assert expand_adapters(["user/name", str(sweep), "elsewhere"]) == ["user/name", *runs, "elsewhere"]
    assert expand_adapters([runs[2], NAME, "user/name"]) == [runs[2], NAME, "user/name"]
    assert expand_adapters([]) == []


def test_a_sweep_that_was_moved_has_its_jobs(sweep: Path) -> None:
    moved = sweep.rename(sweep.with_name("moved"))
    assert expand_adapters([str(moved)]) == [str(moved / str(number)) for number in range(11)]


def test_jobs_may_lie_outside_of_the_sweep(tmp_path: Path) -> None:
    run = job(tmp_path / "jobs", 0)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "jobs" / ".jobs").rename(tmp_path / "sweep" / ".jobs")
    assert expand_adapters([str(tmp_path / "sweep")]) == [run]


def test_sweeps_without_an_adapter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / ".jobs").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the sweep '.*/empty' has no complete job of lingact train \(jobs: none has finished\)"):
        expand_adapters([str(tmp_path / "empty")])
    for number in range(3):
        job(tmp_path / "fallen", number, ("failed", "refused", "failed")[number])
    with pytest.raises(UserError, match=r"the sweep '.*/fallen' has no complete job of lingact train \(jobs: 2 failed, 1 refused\)"):
        expand_adapters([str(tmp_path / "fallen")])
    job(tmp_path / "of_eval", 0, adapter=False)
    with pytest.raises(UserError, match=r"the sweep '.*/of_eval' has no complete job of lingact train \(jobs: 1 complete\)"):
        expand_adapters([str(tmp_path / "of_eval")])


def test_an_adapter_that_a_sweep_has_lost_is_named(sweep: Path) -> None:
    (sweep / "3" / "adapter" / SETTINGS).unlink()
    with pytest.raises(UserError, match=r"'.*/sweep/3' of the sweep '.*/sweep' is complete but no longer has an adapter"):
        expand_adapters([str(sweep)])


@pytest.mark.parametrize("content", ['{"job": 0', "{}", "[]"])
def test_a_damaged_record_is_refused(sweep: Path, content: str) -> None:
    (sweep / ".jobs" / "4.json").write_text(content)
    with pytest.raises(UserError, match=r"'.*/\.jobs/4\.json' cannot be read: .* delete it to go on without that job"):
        expand_adapters([str(sweep)])


def test_the_same_adapter_twice_is_refused(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sweep)
    for twice in (["0", "1", "0"], ["user/name", "user/name"], [NAME, NAME]):
        with pytest.raises(UserError, match=f"'{twice[-1]}' is given twice; give every adapter once"):
            expand_adapters(twice)
    for other in ("0/", "./0", "0/adapter", str(sweep / "0")):
        with pytest.raises(UserError, match=rf"'{other}' is given twice \(as '0', too\)"):
            expand_adapters(["0", other])
    with pytest.raises(UserError, match=r"is given twice \(as '.*/sweep/7', too\); give every adapter once, and a sweep without its single runs"):
        expand_adapters([str(sweep), "7"])


# --- training ------------------------------------------------------------------------------------------------------------------------------------


def test_a_run_folder_tells_how_its_adapter_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    job(tmp_path, 0)
    (tmp_path / "0").rename(run)
    assert training_of(find_adapter(str(run))) is None
    config = {"seed": 3, "lang": ["ml", "hi"], "note": "ഒരു"}
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    write_json(run / "adapter" / IDENTITY, {"training": {"seed": 4}})
    assert training_of(find_adapter(str(run))) == training_of(find_adapter(f"{run}/adapter/")) == config
    monkeypatch.chdir(run)
    assert training_of(find_adapter(".")) == training_of(Path("adapter")) == config
    monkeypatch.chdir(run / "adapter")
    assert training_of(find_adapter(".")) == config


def test_adapters_carry_how_they_were_trained(tmp_path: Path) -> None:
    told = {"seed": 3, "model": {"name": "${asset:microworld/model}"}, "lang": ["ml"], "note": "${oc.env:HOME} ${asset:x}"}
    write_json(tmp_path / IDENTITY, {"base_model": "tiny", "training": told})
    # Of what a stranger may have written nothing is looked up but the package's own files.
    assert training_of(tmp_path) == told | {"model": {"name": asset("microworld/model")}}


def test_adapters_from_elsewhere_do_not_tell(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).touch()
    (tmp_path / "config.yaml").write_text("base_model: of another trainer")
    assert training_of(tmp_path) is None
    write_json(tmp_path / IDENTITY, {"base_model": "tiny", "base_sha256": "0" * 64})
    assert training_of(tmp_path) is None
    (tmp_path / IDENTITY).write_text('{"base_model": ')
    with pytest.raises(UserError, match=r"lingact\.json' cannot be read: it is truncated or not a lingact file"):
        training_of(tmp_path)


@pytest.mark.parametrize("content", [b"seed: [3", b"lang\n", b"", b"\xff\xfe"])
def test_a_damaged_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    run = Path(job(tmp_path, 0))
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"'.*/0/config\.yaml' cannot be read: it is truncated or not a lingact file"):
        training_of(find_adapter(str(run)))
