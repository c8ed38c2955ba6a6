"""Load a causal language model, find its blocks, read the residual stream by hooks."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lingact.catalogue.licences import licence_of
from lingact.config.model import ModelConfig
from lingact.data.tokens import TokenBatch, Tokens
from lingact.errors import UserError
from lingact.hub.huggingface import HubItem, commit_of, from_the_hub
from lingact.models.adapters import without_adapter
from lingact.models.devices import resolve_device
from lingact.models.finite import describe, nonfinite
from lingact.models.model_files import Facts, check_attention, check_context, check_folder, no_safetensors, shards_of
from lingact.models.next_tokens import NextTokens, head_of, keeping_positions, reading_states

BlockOutput = Tensor | Sequence[Any]
"""What a block returns: its residual, or a tuple or list that begins with it, as in transformers before 5 and in some old architectures still."""


class _Enough(Exception):
    """Raised in a hook at the last wanted residual, so that later blocks and the logits are not computed."""


class ModelIdentity(TypedDict, total=False):
    """Which model it is, as the manifest records it."""

    name: str
    revision: str | None
    sha256: str
    """Hash of the weights."""
    dtype: str
    attention: str
    config_sha256: str


@dataclass
class LanguageModel:
    """A model, its tokenizer and its blocks. `model` may later be wrapped by peft, which works in place: `blocks` stay valid."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tokens: Tokens
    blocks: nn.ModuleList
    identity: ModelIdentity
    sharded: bool = False
    """Whether each process holds only a share of the weights. Then all processes have to make the same passes, each to its end."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return embeddings_of(self.model).shape[1]

    def residuals(
        self, batch: TokenBatch, layers: tuple[int, ...], *, predict: bool = False
    ) -> tuple[dict[int, Float[Tensor, "batch seq d_model"]], NextTokens | None]:
        """The outputs of the given blocks for a batch, and with `predict` the predictions of its kept tokens (`TokenBatch.predicts`), in one pass.

        Callers control autograd. Without `predict` the pass stops after the last of the layers, unless the model is sharded.
        """
        batch = batch.to(self.device)
        with captured(self.blocks, layers, stop=not (predict or self.sharded)) as caught:
            if predict:
                return caught, self._predictions(batch)
            with suppress(_Enough):
                self._forward(batch)
        return caught, None

    def _predictions(self, batch: TokenBatch) -> NextTokens:
        model, at = without_adapter(self.model), batch.predicts
        vocabulary = embeddings_of(self.model).shape[0]
        if self.sharded:  # each pass has to go to its end, in all processes alike
            with keeping_positions(model, at):
                return NextTokens(batch.target, self._forward(batch)[0], lambda logits: logits, vocabulary)
        with reading_states(model, at) as states:
            self._forward(batch)
        return NextTokens(batch.target, states[0], head_of(model), vocabulary)

    def _forward(self, batch: TokenBatch) -> Float[Tensor, "..."]:
        """The logits of whatever positions the head gets."""
        return self.model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False).logits

    def shard(self) -> None:
        """Divide the frozen weights among all processes, block by block (fully sharded data parallel, Zhao et al. 2023, arXiv 2304.11277).

        Parameters with gradients are not divided; the caller keeps them equal in all processes. Only loading the model again undoes it.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (torch.distributed.get_world_size(),))
        whole = {parameter for parameter in self.model.parameters() if parameter.requires_grad}
        for module in (*self.blocks, self.model):
            fully_shard(module, mesh=mesh, ignored_params=whole)
        self.sharded = True


@contextmanager
def captured(blocks: nn.ModuleList, layers: tuple[int, ...], *, stop: bool) -> Iterator[dict[int, Tensor]]:
    """While open, forward passes put the outputs of `layers` into the dictionary; with `stop` they end at the last of these layers."""
    caught: dict[int, Tensor] = {}
    last = max(layers, default=-1)

    def catch(layer: int, residual: Tensor) -> None:
        caught[layer] = residual
        if stop and layer == last:
            raise _Enough

    with on_residuals(blocks, layers, catch):
        yield caught


@contextmanager
def on_residuals(blocks: nn.ModuleList, layers: tuple[int, ...], use: Callable[[int, Float[Tensor, "batch seq d_model"]], None]) -> Iterator[None]:
    """While open, `use` is called with each of the layers and its output, as soon as a forward pass has it."""

    def hook_of(layer: int) -> Callable[[nn.Module, tuple[object, ...], BlockOutput], None]:
        def hook(_module: nn.Module, _inputs: tuple[object, ...], output: BlockOutput) -> None:
            residual = output if isinstance(output, Tensor) else output[0]
            assert residual.ndim == 3, f"block {layer} gave a tensor of shape {tuple(residual.shape)}"
            use(layer, residual)

        return hook

    wanted = [blocks[layer] for layer in layers]
    handles = [block.register_forward_hook(hook_of(layer)) for layer, block in zip(layers, wanted, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embeddings_of(model: nn.Module) -> nn.Parameter:
    """The input embeddings of a transformers model, also of one that peft has wrapped: a row for each token."""
    found = model.get_input_embeddings()  # pyrefly: ignore[not-callable] (of PreTrainedModel, which peft's wrapper forwards)
    return found.get_parameter("weight")


def find_blocks(model: nn.Module, count: int) -> nn.ModuleList:
    """The model's decoder blocks: the only outermost list of `count` modules of one class in its decoder (not in a vision tower).

    Raises:
        UserError: there is none, or more than one.
    """
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    found: dict[str, nn.ModuleList] = {}
    for name, module in (decoder or model).named_modules():
        outermost = not any(name.startswith(f"{outer}.") for outer in found)
        if outermost and isinstance(module, nn.ModuleList) and len(module) == count and len({type(block) for block in module}) == 1:
            found[name] = module
    if len(found) != 1:
        raise UserError(
            f"cannot find the decoder blocks of {type(model).__name__}: looked for one list of {count} equal modules, found {sorted(found) or 'none'}"
        )
    return next(iter(found.values()))


def load_model(config: ModelConfig, device: str) -> LanguageModel:
    """Load a model for measuring: frozen, in eval mode, safetensors only.

    Raises:
        UserError: it does not exist, cannot be downloaded, or is not a causal language model in safetensors format.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lingact.models.adapter_hashes import weights_hash

    where = resolve_device(device)
    check_folder(config)
    licence = licence_of(config.name)
    item = HubItem(f"model '{config.name}'{f' (licence {licence})' if licence else ''}", config.name, "model", "or choose another model.name")
    with _only_download_bars(), from_the_hub(item), _in_users_words(config):
        own = _checked_config(config)
        tokenizer = AutoTokenizer.from_pretrained(config.name, revision=config.revision, trust_remote_code=config.trust_remote_code)
        model, loading = AutoModelForCausalLM.from_pretrained(
            config.name,
            config=own,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors=True,
            output_loading_info=True,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    assert tokenizer is not None
    missing = loading["missing_keys"]
    if missing:
        raise UserError(
            f"model '{config.name}' lacks {len(missing)} weights, such as {min(missing)}; the files are incomplete or of another architecture"
        )
    model.requires_grad_(False).eval().to(where)
    _refuse_nonfinite(model, config)
    identity: ModelIdentity = {
        "name": config.name,
        "revision": commit_of(config.name, config.revision) or config.revision,
        "sha256": weights_hash(model),
        "dtype": config.dtype,
        "attention": config.attention,
        "config_sha256": hashlib.sha256(own.to_json_string(use_diff=False).encode()).hexdigest(),
    }
    if config.bos != "auto":
        _begin_with_bos(tokenizer, config.bos)
    tokens = Tokens(tokenizer, config.context, embeddings_of(model).shape[0])
    return LanguageModel(model, tokenizer, tokens, find_blocks(model, own.get_text_config().num_hidden_layers), identity)


def model_in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int) -> LanguageModel:
    """A model that is loaded already, as it is.

    Args:
        context: tokens per window, BOS included.

    Raises:
        UserError: its decoder blocks cannot be identified, or the tokenizer is of another model.
    """
    from lingact.models.adapter_hashes import weights_hash

    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    identity: ModelIdentity = {"name": model.name_or_path or "in memory", "sha256": weights_hash(model)}
    blocks = find_blocks(model, model.config.get_text_config().num_hidden_layers)
    return LanguageModel(model, tokenizer, Tokens(tokenizer, context, embedding.weight.shape[0]), blocks, identity)


def _refuse_nonfinite(model: nn.Module, config: ModelConfig) -> None:
    """Refuse weights that are not finite, in the files or because they exceed the dtype.

    Raises:
        UserError: with tensor, file and what to do.
    """
    saved = {name for name, _ in model.named_parameters()} | set(model.state_dict())
    found = nonfinite((name, value) for name, value in (*model.named_parameters(), *model.named_buffers()) if name in saved)
    if not found:
        return
    files = _files_of(config, found)
    said = f"model '{config.name}': {describe(found, {name: str(path) for name, path in files.items()})}"
    if config.dtype == "float16" and not any(_nonfinite_in_file(path, name) for name, path in files.items()):
        raise UserError(f"{said} in model.dtype=float16, which ends at 65,504; use model.dtype=bfloat16 or float32")
    raise UserError(
        f"{said}; all its outputs would be NaN. The training that wrote it overflowed, or the file is damaged: choose another checkpoint or "
        "revision, or download the file again"
    )


def _files_of(config: ModelConfig, names: Iterable[str]) -> dict[str, Path]:
    """The file that each of these weights was read from, where it is found under its own name."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    def here(file: str) -> Path | None:
        found = cached_file(
            config.name, file, revision=config.revision, local_files_only=True, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return Path(found) if found else None

    index = here(SAFE_WEIGHTS_INDEX_NAME)
    shards = shards_of(index) if index is not None else {}
    found = {name: here(shards.get(name, SAFE_WEIGHTS_NAME)) for name in names if not shards or name in shards}
    return {name: path for name, path in found.items() if path is not None}


def _nonfinite_in_file(path: Path, name: str) -> bool:
    with safe_open(path, framework="pt") as file:
        return name in file.keys() and bool(nonfinite([(name, file.get_tensor(name))]))  # noqa: SIM118 (not a dict)


def _begin_with_bos(tokenizer: PreTrainedTokenizerBase, wanted: bool) -> None:
    """Have the tokenizer put BOS before texts, or not; lm-eval then does the same.

    Raises:
        UserError: it has no BOS token.
    """
    if wanted and tokenizer.bos_token_id is None:
        raise UserError("model.bos is true, but the model's tokenizer has no BOS token; leave it auto")
    tokenizer.add_bos_token = wanted


def _checked_config(config: ModelConfig) -> PretrainedConfig:
    """The model's own configuration, before its weights are fetched.

    Raises:
        UserError: the context or the attention implementation does not work with it.
    """
    own = AutoConfig.from_pretrained(config.name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    text = own.get_text_config()
    facts = Facts(positions=getattr(text, "max_position_embeddings", None), soft_caps=bool(getattr(text, "attn_logit_softcapping", None)))
    check_context(config, facts)
    check_attention(config, facts)
    return own


@contextmanager
def _in_users_words(config: ModelConfig) -> Iterator[None]:
    """While open, what transformers raises over a model that exists but cannot be loaded in this way becomes a user's error."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"model.attention: {config.attention} is not installed here; use model.attention=sdpa or eager") from error
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model '{config.name}' comes with code of its own, which is run only if you ask for it: model.trust_remote_code=true. Read it first"
            ) from error
        raise UserError(f"model '{config.name}' cannot be loaded: {reason}") from error
    except OSError as error:
        if re.search(r"(no file|not appear to have a file) named model\.safetensors", str(error)):
            raise UserError(no_safetensors(config.name)) from error
        if Path(config.name).is_dir():
            raise UserError(f"model '{config.name}' cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        raise


@contextmanager
def _only_download_bars() -> Iterator[None]:
    """While open, progress bars are shown for downloads only, not for loading weights."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    disabled = are_progress_bars_disabled()
    logging.disable_progress_bar()  # also switches off those of downloads
    if not disabled:
        enable_progress_bars()
    yield
