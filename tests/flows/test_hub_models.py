"""Models and SAEs of the hub through the clients that users have: every format, all three entry points, and what goes wrong on the way."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import _snapshot_download, constants, file_download
from sae_lens import SAE
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lingact.config.model import ModelConfig, SaeSet
from lingact.models.lm import LanguageModel, load_model
from lingact.models.sae import Dictionary, load_dictionaries
from tests.helpers import hub, hub_models
from tests.helpers.hub_server import COMMIT, HubServer, serving
from tests.helpers.paths import CONF
from tests.helpers.processes import hub_surroundings, unused_port

CODES = ("en", "hi")
MANY = """
import json, sys
from pathlib import Path
from lingact.cli import main as cli
for job, arguments in json.loads(sys.argv[2]):
    print(job, "exit code", cli.main(job, Path(sys.argv[1]), arguments), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def server(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    hub_models.write_models(root, tokenizer)
    hub_models.write_saes(root)
    with serving(root) as server:
        yield server


@pytest.fixture(scope="module")
def process(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`process(home, *jobs)`: jobs one after the other in a process that finds the hub at the server and its cache in that folder."""
    here = tmp_path_factory.mktemp("here")
    rows = [{"unit": f"row-{place}"} | {code: hub.words(code, 2, f"{code}/{place}") for code in CODES} for place in range(24)]
    hub.write_rows(here / "text.jsonl", rows)
    common = [
        "device=cpu",
        "plan=off",  # of models of the true shapes, which these are not
        "model.revision=null",
        "model.dtype=float32",
        "model.context=64",
        "sae.layers=[0]",
        "sae.heldout=null",
        "corpus=files",
        f"corpus.path={here / 'text.jsonl'}",
    ]
    common += ["languages.high=[]", "languages.low=[hi]", "tracking=none"]
    own = {
        "analyze": [*common, "statistics.resamples=100"],
        "train": [
            *common,
            "statistics.resamples=100",
            "lang=hi",
            "trainer.steps=2",
            "trainer.sentences=4",
            "optim.warmup_steps=1",
            "peft.r=2",
            "cache=null",
        ],
        "eval": [text for text in common if not text.startswith("sae")]
        + ["tasks.limit=2", "tasks.benchmarks=[micro_arc]", "text_split=null", "resamples=100", "cache=null"],
    }

    def run(home: Path, *jobs: tuple[str, list[str]], **more: str) -> subprocess.CompletedProcess[str]:
        surroundings = hub_surroundings(home) | {"HF_ENDPOINT": server.url} | more
        given = json.dumps([(job, [*own[job], *arguments]) for job, arguments in jobs])
        return subprocess.run([sys.executable, "-c", MANY, str(CONF), given], cwd=here, env=surroundings, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def warm(process: Callable[..., subprocess.CompletedProcess[str]], server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with everything in it, after all three entry points have run on every model. One download broke off in the middle, one was slow."""
    folder = tmp_path_factory.mktemp("runs")
    server.drops["params.npz"] = 500_000
    server.slow["hyperparams.json"] = 2.0
    jobs = []
    for name, preset in PRESETS.items():
        trained = folder / name / "train"
        jobs += [("analyze", [*preset, f"hydra.run.dir={folder / name / 'analyze'}"]), ("train", [*preset, f"hydra.run.dir={trained}"])]
        jobs += [("eval", [preset[0], f"adapter={trained}", f"hydra.run.dir={folder / name / 'eval'}"])]
    done = process(folder / "home", *jobs)
    assert done.stderr.count("exit code 0") == 3 * len(PRESETS), done.stderr
    assert "Trying to resume download" in done.stderr
    return folder


PRESETS = {
    "google/gemma-2-2b": ["model=gemma2_2b", "sae=gemma_scope_2b_16k"],
    "google/gemma-3-1b-pt": ["model=gemma3_1b", "sae=gemma_scope_2_1b"],
    "meta-llama/Llama-3.1-8B": ["model=llama31_8b", "sae=llama_scope_8x"],
    "Qwen/Qwen3-1.7B-Base": ["model=qwen3_1_7b", "sae=qwen_scope_1_7b"],
    "openai-community/gpt2": ["model=gpt2", "sae=gpt2_resid_post"],
}


@pytest.mark.slow
def test_all_entry_points_run_on_every_model(warm: Path, server: HubServer) -> None:
    for name in PRESETS:
        made = json.loads((warm / name / "analyze" / "manifest.json").read_text())["identity"]
        assert (made["model"]["name"], made["model"]["revision"]) == (name, COMMIT)
        assert made["sae"]["measuring"]["layers"] == [0]
        assert (warm / name / "train" / "adapter" / "adapter_model.safetensors").is_file()
        assert json.loads((warm / name / "eval" / "manifest.json").read_text())["status"] == "complete"
    # The rest of the file that broke off was asked for, and not all of it again.
    assert sum(asked.endswith("params.npz") and asked.startswith("GET") for asked in server.asked) == 2


# --- the same as the libraries' own routes -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=PRESETS)
def loaded(request: pytest.FixtureRequest, warm: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LanguageModel, Dictionary, str, str]:
    """A model, its SAE, and how sae-lens calls the latter, from the warm cache: this process has no way to any hub."""
    for module in (constants, file_download, _snapshot_download):
        if hasattr(module, "HF_HUB_CACHE"):
            monkeypatch.setattr(module, "HF_HUB_CACHE", str(warm / "home" / "hub"))
    config = yaml.safe_load((warm / request.param / "analyze" / "config.yaml").read_text())
    lm = load_model(ModelConfig(**config["model"]), "cpu")
    spec = SaeSet(**config["sae"]["measuring"])
    return lm, load_dictionaries(spec, (0,), lm)[0][0], spec.release, spec.id_of(0)


@pytest.mark.slow
@torch.no_grad()
def test_residuals_logits_and_features_are_those_of_the_libraries(loaded: tuple[LanguageModel, Dictionary, str, str]) -> None:
    lm, dictionary, release, sae_id = loaded
    batch = lm.tokens.collate(lm.tokens.windows(["A dog sings.", "The old market by the river, on Monday night"]))
    plain = AutoModelForCausalLM.from_pretrained(lm.identity["name"], dtype=torch.float32, attn_implementation=lm.identity["attention"]).eval()
    residuals, predictions = lm.residuals(batch, (0,), predict=True)
    expected = plain(input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=True)
    assert torch.equal(residuals[0], expected.hidden_states[1])
    assert predictions is not None
    torch.testing.assert_close(predictions.logits(), expected.logits[batch.predicts])
    x = residuals[0][batch.keep]
    if release.startswith("gemma-scope-2-"):  # sae-lens itself wants the hub for these
        features, norms, decoded = by_hand(Path(constants.HF_HUB_CACHE), x)
    else:
        sae = SAE.from_pretrained(release, sae_id)
        features, norms = sae.encode(x), sae.W_dec.norm(dim=-1)
        decoded = sae.decode(features)
    assert 0 < (features > 0).float().mean() < 1
    torch.testing.assert_close(dictionary.encode(x), features * norms)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), decoded, rtol=1e-4, atol=1e-5)


def by_hand(cache: Path, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, decoder norms and reconstruction by the one `params.safetensors` of Gemma Scope 2 that the cache has."""
    (file,) = cache.rglob("snapshots/**/params.safetensors")
    weights = load_file(file)
    pre = x @ weights["w_enc"] + weights["b_enc"]
    features = torch.where(pre > weights["threshold"], pre, 0.0)
    return features, weights["w_dec"].norm(dim=-1), features @ weights["w_dec"] + weights["b_dec"]


# --- what goes wrong -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_warm_cache_is_enough_without_a_hub(process: Callable[..., subprocess.CompletedProcess[str]], warm: Path) -> None:
    preset = PRESETS["google/gemma-3-1b-pt"]
    done = process(warm / "home", ("analyze", [*preset, f"hydra.run.dir={warm / 'again'}"]), HF_ENDPOINT=f"http://127.0.0.1:{unused_port()}")
    assert "exit code 0" in done.stderr, done.stderr
    assert "etrying" not in done.stderr
    first, again = (json.loads((run / "summary.json").read_text()) for run in (warm / "google/gemma-3-1b-pt" / "analyze", warm / "again"))
    assert first == again


@pytest.mark.slow
def test_what_the_hub_does_not_give(process: Callable[..., subprocess.CompletedProcess[str]], server: HubServer, tmp_path: Path) -> None:
    """One process for all of it; a model that is damaged on its way, too, and given whole at the next attempt."""
    llama, gpt2 = PRESETS["meta-llama/Llama-3.1-8B"], PRESETS["openai-community/gpt2"]
    server.refuses = {"google/gemma-2-2b": "gated", "google/gemma-3-1b-pt": "not asked for", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50": "unknown"}
    server.damages = {"model.safetensors"}
    jobs = [("analyze", PRESETS["google/gemma-2-2b"]), ("train", PRESETS["google/gemma-3-1b-pt"]), ("analyze", [*gpt2, "model.name=no/such"])]
    jobs += [("analyze", [*gpt2, "model.revision=nowhere"]), ("eval", [llama[0]])]
    done = process(tmp_path / "home", *[(job, [*given, f"hydra.run.dir={tmp_path / 'run'}"]) for job, given in jobs])
    terms = "it is only available to those who accept its terms. Accept them on {page} and run `hf auth login`"
    page, signed = f"{server.url}/no/such", "run `hf auth login` if you need to, or choose another model.name"
    own = f"{server.url}/openai-community/gpt2 for its branches, tags and commits, or leave the revision null"
    said = [
        f"model 'google/gemma-2-2b' (licence gemma) cannot be loaded: {terms.format(page=server.url + '/google/gemma-2-2b')}",
        f"model 'google/gemma-3-1b-pt' (licence gemma) cannot be loaded: {terms.format(page=server.url + '/google/gemma-3-1b-pt')}",
        f"model 'no/such' cannot be loaded: it does not exist on the hub, or you have no access. Look at {page}; {signed}",
        f"model 'openai-community/gpt2' (licence mit) cannot be loaded: it has no such revision. Look at {own}",
        "model 'meta-llama/Llama-3.1-8B' (licence llama3.1): the download is damaged (it does not match its hash) and was deleted. Try again",
    ]
    expected = [line for (job, _), text in zip(jobs, said, strict=True) for line in (f"{job}.py:", f"  {text}", f"{job} exit code 2")]
    assert done.stderr.splitlines() == expected
    server.damages.clear()
    server.refuses.pop("google/gemma-2-2b")
    qwen = PRESETS["Qwen/Qwen3-1.7B-Base"]
    done = process(
        tmp_path / "home", ("analyze", [*qwen, f"hydra.run.dir={tmp_path / 'run'}"]), ("eval", [llama[0], f"hydra.run.dir={tmp_path / 'whole'}"])
    )
    release = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    assert (
        f"sae 'qwen-scope-3-1.7b-base-w32k-l50' 'layer0' ({release}) cannot be loaded: it does not exist on the hub, or you have no access. Look at"
        in done.stderr
    )
    assert "eval exit code 0" in done.stderr, done.stderr


@pytest.mark.slow
def test_no_hub_and_no_cache(process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{unused_port()}"
    done = process(tmp_path / "home", ("train", PRESETS["openai-community/gpt2"]), HF_ENDPOINT=address)
    told = f"cannot reach {address}, and it was not downloaded before. Connect once so that it can be downloaded, or choose another model.name"
    assert done.stderr == f"train.py:\n  model 'openai-community/gpt2' (licence mit) cannot be loaded: {told}\ntrain exit code 2\n"
