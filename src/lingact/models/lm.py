"""Load a causal language model, find its blocks, read the residual stream by hooks."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lingact.models.devices import resolve_device
from lingact.models.finite import describe, nonfinite
from lingact.models.model_files import Facts, check_attention, check_context, check_folder, no_safetensors


class _Enough(Exception):
    """Raised in a hook when the last wanted residual is there, so that later blocks and the logits are not computed."""


@dataclass
class LanguageModel:
    """A model, its tokenizer and its blocks. `model` may later be wrapped by peft, which works in place: `blocks` stay valid."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    tokens: Tokens
    blocks: nn.ModuleList
    identity: dict[str, Any]
    sharded: bool = False
    """Whether each process holds a share of the weights only. Then all have to make the same passes, and to their end."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.model.get_input_embeddings().weight.shape[1]  # pyrefly: ignore[not-callable]

    def residuals(
        self, batch: TokenBatch, layers: tuple[int, ...], *, logits: bool = False
    ) -> tuple[dict[int, Float[Tensor, "batch seq d_model"]], Tensor | None]:
        """The outputs of the given blocks for a batch, and the logits if asked for, in one forward pass.

        Gradients flow if autograd is on. Without `logits` the pass stops behind the last of the layers, unless the model is sharded.
        """
        batch = batch.to(self.device)
        with captured(self.blocks, layers, stop=not (logits or self.sharded)) as caught:
            try:
                output = self.model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
            except _Enough:
                output = None
        return caught, output.logits if logits and output is not None else None

    def shard(self) -> None:
        """Divide the frozen weights among all processes, block by block (fully sharded data parallel, Zhao et al. 2023, arXiv 2304.11277).

        What has gradients stays whole, and it is for the caller to keep it alike. There is no way back but to load the model again.
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
    """While open, forward passes leave the outputs of `layers` in the dictionary; with `stop` they end there."""
    caught: dict[int, Tensor] = {}
    last = max(layers, default=-1)

    def hook_of(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Blocks return a tensor in transformers 5 and returned a tuple before.
            residual = output[0] if isinstance(output, tuple) else output
            assert residual.ndim == 3, f"block {layer} gave a tensor of shape {tuple(residual.shape)}"
            caught[layer] = residual
            if stop and layer == last:
                raise _Enough

        return hook

    wanted = [blocks[layer] for layer in layers]
    handles = [block.register_forward_hook(hook_of(layer)) for layer, block in zip(layers, wanted, strict=True)]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def find_blocks(model: nn.Module, count: int) -> nn.ModuleList:
    """The model's decoder blocks: the one outermost list of `count` modules of one class in its decoder (and not in a vision tower).

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
            f"cannot tell the decoder blocks of {type(model).__name__}: looked for one list of {count} equal modules, found {sorted(found) or 'none'}"
        )
    return next(iter(found.values()))


def load_model(config: ModelConfig, device: str) -> LanguageModel:
    """Load a model for measuring: frozen, in eval mode, safetensors only.

    Raises:
        UserError: it is not there, cannot be had, or is not a causal LM in safetensors format.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lingact.models.adapter_hashes import weights_hash

    where = resolve_device(device)
    check_folder(config)
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    licence = licence_of(config.name)
    item = HubItem(f"model '{config.name}'{f' (licence {licence})' if licence else ''}", config.name, "model", "or choose another model.name")
    with _only_bars_of_downloads(), from_the_hub(item), _reasons_of_transformers(config):
        shape = _checked_shape(config)
        tokenizer: Any = AutoTokenizer.from_pretrained(config.name, **source)
        model, loading = AutoModelForCausalLM.from_pretrained(
            config.name,
            config=shape,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors=True,
            output_loading_info=True,
            **source,
        )
    missing = loading["missing_keys"]
    if missing:
        raise UserError(
            f"model '{config.name}' lacks {len(missing)} weights, such as {min(missing)}; the files are incomplete or of another architecture"
        )
    model.requires_grad_(False).eval().to(where)
    _refuse_nonfinite(model, config)
    identity = {
        "name": config.name,
        "revision": commit_of(config.name, config.revision) or config.revision,
        "sha256": weights_hash(model),
        "dtype": config.dtype,
        "attention": config.attention,
        "config_sha256": hashlib.sha256(shape.to_json_string(use_diff=False).encode()).hexdigest(),
    }
    if config.bos != "auto":
        _begin_with_bos(tokenizer, config.bos)
    tokens = Tokens(tokenizer, config.context, model.get_input_embeddings().weight.shape[0])
    return LanguageModel(model, tokenizer, tokens, find_blocks(model, shape.get_text_config().num_hidden_layers), identity)


def model_in_memory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int) -> LanguageModel:
    """A model that is loaded already, as it is.

    Args:
        context: tokens per window, BOS included.

    Raises:
        UserError: its decoder blocks cannot be told, or the tokenizer is of another model.
    """
    from lingact.models.adapter_hashes import weights_hash

    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    identity = {"name": model.name_or_path, "sha256": weights_hash(model)}
    blocks = find_blocks(model, model.config.get_text_config().num_hidden_layers)
    return LanguageModel(model, tokenizer, Tokens(tokenizer, context, embedding.weight.shape[0]), blocks, identity)


def _refuse_nonfinite(model: nn.Module, config: ModelConfig) -> None:
    """Refuse weights that are not finite, in the files or because they do not fit the dtype.

    Raises:
        UserError: with tensor, file and what to do.
    """
    saved = {name for name, _ in model.named_parameters()} | set(model.state_dict())
    spoiled = nonfinite((name, value) for name, value in (*model.named_parameters(), *model.named_buffers()) if name in saved)
    if not spoiled:
        return
    files = _files_of(config, spoiled)
    said = f"model '{config.name}': {describe(spoiled, {name: str(path) for name, path in files.items()})}"
    if config.dtype == "float16" and not any(_spoiled_in_file(path, name) for name, path in files.items()):
        raise UserError(f"{said} in model.dtype=float16, which ends at 65,504; use model.dtype=bfloat16 or float32")
    raise UserError(
        f"{said}; nothing that it computes would be a number. The training that wrote it overflowed, or the file is damaged: take another checkpoint "
        "or revision, or get the file again"
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
    shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index is not None else {}
    found = {name: here(shards.get(name, SAFE_WEIGHTS_NAME)) for name in names if not shards or name in shards}
    return {name: path for name, path in found.items() if path is not None}


def _spoiled_in_file(path: Path, name: str) -> bool:
    with safe_open(path, framework="pt") as file:
        return name in file.keys() and bool(nonfinite([(name, file.get_tensor(name))]))  # noqa: SIM118 (not a dict)


def _begin_with_bos(tokenizer: Any, wanted: bool) -> None:
    """Have the tokenizer put BOS before texts, or not; so lm-eval does the same.

    Raises:
        UserError: it has no BOS token.
    """
    if wanted and tokenizer.bos_token_id is None:
        raise UserError("model.bos is true, but the model's tokenizer has no BOS token; leave it auto")
    tokenizer.add_bos_token = wanted


def _checked_shape(config: ModelConfig) -> PretrainedConfig:
    """The model's own configuration, before its weights are fetched.

    Raises:
        UserError: the context or the attention implementation does not go with it.
    """
    shape = AutoConfig.from_pretrained(config.name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    text = shape.get_text_config()
    facts = Facts(positions=getattr(text, "max_position_embeddings", None), soft_caps=bool(getattr(text, "attn_logit_softcapping", None)))
    check_context(config, facts)
    check_attention(config, facts)
    return shape


@contextmanager
def _reasons_of_transformers(config: ModelConfig) -> Iterator[None]:
    """What transformers raises over a model that is there but is not to be loaded so, in words for the user."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"model.attention: {config.attention} is not installed here; use model.attention=sdpa or eager") from error
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model '{config.name}' brings code of its own, which is not run unless you ask for it: model.trust_remote_code=true. Read it first"
            ) from error
        raise UserError(f"model '{config.name}' cannot be loaded: {reason}") from error
    except OSError as error:
        if re.search(r"(no file|not appear to have a file) named model\.safetensors", str(error)):
            raise UserError(no_safetensors(config.name)) from error
        if Path(config.name).is_dir():
            raise UserError(f"model '{config.name}' cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        raise


@contextmanager
def _only_bars_of_downloads() -> Iterator[None]:
    """Of the progress bars those of downloads only; that of the weights' loading says nothing that a reader needs."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    disabled = are_progress_bars_disabled()
    logging.disable_progress_bar()  # switches off the others, too
    if not disabled:
        enable_progress_bars()
    yield
