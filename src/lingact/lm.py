"""Load a causal language model, find its blocks, read the residual stream by hooks."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lingact.config import ModelConfig
from lingact.errors import UserError
from lingact.hub import HubItem, commit_of, from_the_hub
from lingact.languages import nearest
from lingact.licences import licence_of
from lingact.tokens import TokenBatch, Tokens


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


def resolve_device(device: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        UserError: the device is unknown or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Of several processes on one machine each has a device of its own.
    device = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"device: '{device}' is unknown; use auto, cpu, cuda or cuda:N") from None
    if resolved.type == "cuda" and (not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: '{device}' is not there; {torch.cuda.device_count()} CUDA devices are visible. Use device=auto or device=cpu")
    return resolved


def check_devices(device: str, count: int) -> None:
    """Refuse more processes on this machine than it has GPUs, if they run on these.

    Raises:
        UserError: there are fewer.
    """
    there = torch.cuda.device_count()
    if count > 1 and there < count and (device == "cuda" or (device == "auto" and torch.cuda.is_available())):
        raise UserError(f"device: {count} processes need a GPU each, and {there} are visible; start fewer (devices), or use device=cpu")


def load_model(config: ModelConfig, device: str) -> LanguageModel:
    """Load a model for measuring: frozen, in eval mode, safetensors only.

    Raises:
        UserError: it is not there, cannot be had, or is not a causal LM in safetensors format.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lingact.adapters import weights_hash

    where = resolve_device(device)
    path = Path(config.name)
    if path.is_absolute() and not (path / "config.json").is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"model.name: no model in the folder '{path}' (no config.json){nearest(path.name, siblings)}")
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
    return LanguageModel(model, tokenizer, Tokens(tokenizer, config.context), find_blocks(model, shape.get_text_config().num_hidden_layers), identity)


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
    limit = getattr(text, "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise UserError(f"model.context is {config.context}; '{config.name}' takes at most {limit} tokens")
    if getattr(text, "attn_logit_softcapping", None) and config.attention == "sdpa":
        raise UserError(f"model.attention: sdpa leaves out the soft caps of '{config.name}'; use model.attention=eager")
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
            raise UserError(
                f"model '{config.name}' has no weights in safetensors format, and reading other formats can run code; convert it, or choose "
                "another model or revision"
            ) from error
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
