"""The surroundings of every test: no hub, a silent W&B, one thread for each test process; and tiny things to test with."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from importlib import _bootstrap_external as machinery
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from jaxtyping import _import_hook as shape_checks

if TYPE_CHECKING:
    from lingact.data.corpus import ParallelCorpus
    from lingact.models.lm import LanguageModel
    from lingact.models.sae import Dictionaries

# Read when the libraries are imported, so set before any test is.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_SILENT="true", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
# A shell that starts the tests in the background, and `nohup`, have these ignored, in children, too; the tests send them.
# On the CPU, also where there is a GPU: some tests fork, which CUDA does not survive. CUDA_VISIBLE_DEVICES=0 runs the others there.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def _executed(self: shape_checks._JaxtypingLoader, module: ModuleType) -> None:
    """As jaxtyping's loader does it, which however compiles from source whatever a checked module imports: 2,000 library modules, 12 seconds."""
    plain = machinery.cache_from_source
    machinery.cache_from_source = partial(shape_checks._optimized_cache_from_source, self._typechecker.get_hash())
    try:
        code = self.get_code(module.__name__)
    finally:
        machinery.cache_from_source = plain
    assert code is not None
    exec(code, module.__dict__)


shape_checks._JaxtypingLoader.exec_module = _executed


def pytest_collection_finish() -> None:
    """What is imported by now stays; looking through all of it takes the garbage collector a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Handlers of signals are put back after each test: what ends a command ignores them from then on, which a later test would inherit."""
    from lingact.runtime.interrupts import SIGNALS

    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


D_MODEL, LAYERS, CONTEXT = 32, 3, 64
SENTENCES = {
    "en": (
        "A dog.", "The sky is blue.", "Two and three are five.", "She sings.", "We go to the market on Monday.", "Bread.",
        "It rained all night long.", "My brother has a red car.", "Cold water", "The old man reads a book.", "Yes, of course!", "Who is there?",
    ),
    "es": (
        "Un perro.", "El cielo es azul.", "Dos y tres son cinco.", "Ella canta.", "Vamos al mercado el lunes.", "Pan.",
        "Llovió toda la noche.", "Mi hermano tiene un coche rojo.", "Agua fría", "El anciano lee un libro.", "¡Sí, claro!", "¿Quién es?",
    ),
    "hi": (
        "एक कुत्ता।", "आसमान नीला है।", "दो और तीन पाँच होते हैं।", "वह गाती है।", "हम सोमवार को बाज़ार जाते हैं।", "रोटी।",
        "रात भर बारिश हुई।", "मेरे भाई के पास लाल गाड़ी है।", "ठंडा पानी", "बूढ़ा आदमी किताब पढ़ता है।", "हाँ, ज़रूर!", "कौन है?",
    ),
}  # fmt: skip


@pytest.fixture
def corpus() -> "ParallelCorpus":
    """Twelve sentences in three languages."""
    from lingact.data.corpus import ParallelCorpus

    return ParallelCorpus("twelve", tuple(f"s{i}" for i in range(12)), dict(SENTENCES))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per byte; BOS in front, as Gemma's tokenizer does it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(specials + alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", model_max_length=CONTEXT)


@pytest.fixture
def lm(tokenizer: Any) -> "LanguageModel":
    """A random Gemma 2 of three layers, always the same one."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from lingact.data.tokens import Tokens
    from lingact.models.lm import LanguageModel, find_blocks

    config = Gemma2Config(
        vocab_size=259, hidden_size=D_MODEL, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=CONTEXT, sliding_window=16, pad_token_id=0, bos_token_id=2, eos_token_id=1, initializer_range=0.3,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, Tokens(tokenizer, CONTEXT), find_blocks(model, LAYERS), {"name": "tiny", "sha256": "0"})


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Any]:
    """Random JumpReLU SAEs: decoder norms between 0.5 and 2, thresholds between 0 and 1, about a third of the latents active."""
    import torch
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    def make(layer: int, *, d_in: int = D_MODEL, width: int = 48, hook: str | None = "blocks.{layer}.hook_resid_post") -> JumpReLUSAE:
        metadata = SAEMetadata(hook_name=hook.format(layer=layer) if hook else None)
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=width, metadata=metadata))
        random = torch.Generator().manual_seed(layer)
        sae.W_enc.data = torch.randn(d_in, width, generator=random) / d_in**0.5
        sae.W_dec.data = torch.nn.functional.normalize(torch.randn(width, d_in, generator=random), dim=-1) * torch.linspace(0.5, 2, width)[:, None]
        sae.b_enc.data = 0.1 * torch.randn(width, generator=random)
        sae.b_dec.data = 0.1 * torch.randn(d_in, generator=random)
        sae.threshold.data = torch.rand(width, generator=random)
        return sae

    return make


@pytest.fixture
def dictionaries(make_sae: Callable[..., Any]) -> "Dictionaries":
    """One SAE per layer of `lm`."""
    from lingact.models.sae import Dictionary

    return {layer: Dictionary(make_sae(layer), layer) for layer in range(LAYERS)}


@pytest.fixture(scope="session")
def sae_release(make_sae: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same SAEs as files in sae-lens format, `layer_<n>`."""
    folder = tmp_path_factory.mktemp("release")
    for layer in range(LAYERS):
        make_sae(layer).save_model(folder / f"layer_{layer}")
    return folder


@pytest.fixture(scope="session")
def small_toy_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The microworld from its minute-sized recipe, kept between sessions in pytest's cache; not to be changed."""
    from tests.helpers.toy_model import kept_toy_model

    cache = getattr(request.config, "cache", None)  # none with `-p no:cacheprovider`
    return kept_toy_model(Path(cache.mkdir("toy_model")) if cache else tmp_path_factory.getbasetemp().parent / "toy_model")


@pytest.fixture
def apart(tmp_path: Path) -> Callable[..., list[Any]]:
    """`apart(3, work)`: what `work(rank)` gives, or raises, in each of three processes that share a run; None of one that ended before."""
    import multiprocessing
    import pickle

    from torch import distributed

    context = multiprocessing.get_context("fork")  # what is imported here need not be imported there

    def run(world: int, work: Callable[[int], Any]) -> list[Any]:
        folder = tmp_path / f"apart{len(list(tmp_path.glob('apart*')))}"
        folder.mkdir()

        def process(rank: int) -> None:
            gc.freeze()  # as in tests/helpers/processes.py
            distributed.init_process_group("gloo", store=distributed.FileStore(str(folder / "store"), world), rank=rank, world_size=world)
            distributed.barrier()  # all are there before one ends
            try:
                found = work(rank)
            except BaseException as error:  # noqa: BLE001 (handed back)
                found = error
            (folder / str(rank)).write_bytes(pickle.dumps(found))
            os._exit(0)  # nothing of what pytest has to do at its end

        processes = [context.Process(target=process, args=(rank,)) for rank in range(world)]
        for each in processes:
            each.start()
        for each in processes:
            each.join()
        files = [folder / str(rank) for rank in range(world)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]

    return run
