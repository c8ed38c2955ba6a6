"""Tokenizer and language model of the microworld."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from lingact.microworld.documents import mixture
from lingact.microworld.recipe import Recipe

CHECKPOINT_EVERY = 100


def train_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerFast:
    """A BPE tokenizer in SentencePiece style with byte fallback, trained on the skewed mixture, so that fertility differs."""
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Punctuation, digits and Han characters are split off, so that a prompt's tokens never depend on the answer after it.
            pre_tokenizers.Split(Regex(r"\p{Han}|\p{P}|\p{Nd}"), behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    documents = islice(mixture(recipe.seed, recipe.shares, recipe.corpus_events), recipe.tokenizer_documents)
    tokenizer.train_from_iterator((text for _, text in documents), trainer)
    # The trainer marks the byte tokens as special, so that decoding would drop them. They are ordinary tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast


def token_stream(recipe: Recipe, shares: dict[str, float], tokenizer: PreTrainedTokenizerFast, count: int) -> np.ndarray:
    """`count` token ids of documents from the mixture, one after the other, each with a BOS in front."""
    chunks: list[np.ndarray] = []
    total = 0
    documents = mixture(recipe.seed, shares, recipe.corpus_events)
    with tqdm(total=count, desc="training text", unit="tok", unit_scale=True) as bar:
        while total < count:
            for encoding in tokenizer.backend_tokenizer.encode_batch([text for _, text in islice(documents, 2000)]):
                chunks.append(np.array(encoding.ids, dtype=np.uint16))
                total += len(encoding.ids)
                bar.update(len(encoding.ids))
    return np.concatenate(chunks)[:count]


def model_config(recipe: Recipe) -> Gemma2Config:
    """Gemma-2's own classes and switches (soft caps, post-norms, alternating windows) at a small size."""
    head = recipe.hidden_size // recipe.heads
    return Gemma2Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=head,
        query_pre_attn_scalar=head,
        max_position_embeddings=recipe.context,
        sliding_window=recipe.context // 2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="eager",  # pyrefly: ignore[unexpected-keyword]
    )


def rows_of_step(recipe: Recipe, stream: np.ndarray, step: int) -> torch.Tensor:
    """The batch of a step, Int["row token"]: rows of `row_tokens` tokens, or at some steps fewer rows of the length of the context."""
    tokens = recipe.batch_rows * recipe.row_tokens
    every = round(1 / recipe.long_row_share)
    length = recipe.context if step % every == every - 1 else recipe.row_tokens
    return torch.from_numpy(stream[step * tokens : (step + 1) * tokens].astype(np.int64)).view(-1, length)


def train_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path, scratch: Path) -> list[float]:
    """Train and save the model, continuing from the last checkpoint in `scratch`. Returns the loss of every tenth step, in nats per token."""
    torch.manual_seed(recipe.seed)
    model = Gemma2ForCausalLM(model_config(recipe))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}], lr=recipe.lr, betas=(0.9, 0.98)
    )
    cosine = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.lr, total_steps=recipe.steps, pct_start=recipe.warmup_steps / recipe.steps, cycle_momentum=False
    )
    stream_file, checkpoint = scratch / "stream.npy", scratch / "model.ckpt"
    if not stream_file.exists():
        stream = token_stream(recipe, recipe.shares, tokenizer, recipe.steps * recipe.batch_rows * recipe.row_tokens)
        np.save(scratch / "unfinished.npy", stream)
        (scratch / "unfinished.npy").replace(stream_file)
    stream = np.load(stream_file)
    first, losses = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        cosine.load_state_dict(state["schedule"])
        first, losses = state["step"], state["losses"]
    model.train()
    bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="language model", unit="step")
    for step in bar:
        rows = rows_of_step(recipe, stream, step)
        with torch.autocast("cpu", torch.bfloat16):  # a third faster than float32 if the processor supports the type
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        cosine.step()
        if step % 10 == 0:
            losses.append(round(loss.item(), 4))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": cosine.state_dict()}
            torch.save(state | {"step": step + 1, "losses": losses}, scratch / "unfinished.ckpt")
            (scratch / "unfinished.ckpt").replace(checkpoint)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses
