"""What a training step costs, and what parts, recomputed activations and the frozen base model save.

Random weights of a mid-sized Gemma 2; CPU seconds and peak resident set size, in a process of its own for each way.
"""

import json
import resource
import subprocess
import sys
import time

from lingact.runtime.terminal import show

MIB = 2**20
LAYERS, D_MODEL, WIDTH, VOCABULARY = 8, 512, 2048, 16_000
SENTENCES, LENGTH, STEPS = 16, 96, 2
WAYS: dict[str, dict[str, object]] = {
    "all at once": {},
    "parts of 4 sentences": {"part": 4},
    "parts of 1 sentence": {"part": 1},
    "recomputed activations": {"recomputed": True},
    "parts of 4, recomputed": {"part": 4, "recomputed": True},
    "every next token, base model in each step": {"top": None},
}


def step_cost(way: str) -> dict[str, float]:
    """CPU seconds a step, bytes at the peak, and the length of the gradient of the last step."""
    import torch
    import yaml

    from benchmarks.embedded import CONF
    from lingact.config.training import LoraAdapter, LossConfig
    from lingact.models.adapters import attach_adapter, train_adapter_only
    from lingact.training.base_cache import CacheSettings, cached_anchor, cached_predictions, cached_reference
    from lingact.training.base_targets import BaseOutputs
    from lingact.training.batch_loss import BatchLoss
    from lingact.training.batches import AlignedBatch

    torch.set_num_threads(1)
    settings = WAYS[way]
    top = settings.get("top", 64)
    lm, dictionaries, corpus = random_model()
    written = yaml.safe_load((CONF / "loss" / "gap_and_retention.yaml").read_text())
    loss_config = LossConfig.model_validate(written | {"retention": written["retention"] | {"top": top}})
    reference = cached_reference(lm, dictionaries, corpus, "en", CacheSettings(1024), profiles=False)
    predictions = {code: cached_predictions(lm, corpus, code, CacheSettings(1024), top=64) for code in ("en", "ml")} if top else {}
    anchors = {code: cached_anchor(lm, dictionaries, corpus, code, CacheSettings(1024)) for code in ("en", "ml")}
    peft = LoraAdapter.model_validate(yaml.safe_load((CONF / "peft" / "lora.yaml").read_text()))
    lm.model = attach_adapter(lm.model, lm.blocks, peft, 0)
    train_adapter_only(lm.model)
    if settings.get("recomputed"):
        lm.model.activation_checkpointing_enable()  # pyrefly: ignore[not-callable]
        for block in lm.blocks:
            block.training = True
    loss = BatchLoss(lm, dictionaries, BaseOutputs(reference, reference, predictions, anchors), "en", torch.full((LAYERS,), 1 / LAYERS), loss_config)
    windows = {code: lm.tokens.by_sentence(texts) for code, texts in corpus.texts.items()}
    batch = AlignedBatch(
        torch.arange(SENTENCES), {code: lm.tokens.collate([w for s in range(SENTENCES) for w in own[s]]) for code, own in windows.items()}
    )
    adapter = [p for p in lm.model.parameters() if p.requires_grad]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    for _ in range(STEPS):
        lm.model.zero_grad()
        torch.stack(list(loss.terms(batch, part=settings.get("part")).values())).sum().backward()  # pyrefly: ignore[bad-argument-type]
    seconds = (time.process_time() - started) / STEPS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak > before, "the steps have to be what takes the most memory"
    gradient = torch.stack([p.grad.norm() for p in adapter if p.grad is not None]).norm()
    return {"seconds": seconds, "peak": peak * 1024, "gradient": float(gradient)}


def random_model():  # noqa: ANN201 (what `step_cost` takes)
    """Model, SAEs and aligned text with nothing but random numbers (seed 0)."""
    import torch
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    from lingact.data.corpus import ParallelCorpus
    from lingact.data.tokens import Tokens
    from lingact.models.lm import LanguageModel
    from lingact.models.sae import Dictionary

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=LENGTH + 1, sliding_window=64, pad_token_id=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="w0")
    dictionaries = {}
    for layer in range(LAYERS):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=WIDTH, metadata=SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")))
        sae.W_dec.data = torch.nn.functional.normalize(torch.randn(WIDTH, D_MODEL), dim=-1)
        sae.W_enc.data = sae.W_dec.data.T.contiguous()
        sae.threshold.data = torch.full((WIDTH,), 0.5)
        dictionaries[layer] = Dictionary(sae, layer)
    words = torch.randint(2, VOCABULARY, (2, SENTENCES, LENGTH)).tolist()
    texts = {code: tuple(" ".join(f"w{i}" for i in own) for own in sentences) for code, sentences in zip(("en", "ml"), words, strict=True)}
    corpus = ParallelCorpus("random", tuple(f"s{i}" for i in range(SENTENCES)), texts)
    return LanguageModel(model, tokenizer, Tokens(tokenizer, LENGTH), model.model.layers, {"name": "random", "sha256": "0"}), dictionaries, corpus


def main() -> None:
    """Print a row for each way."""
    rows, first = [], None
    for way in WAYS:
        # This process imports little: on Linux a child's peak is at least that of the process that started it.
        command = [sys.executable, "-m", "benchmarks.training", way]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        first = first or found
        row = {"way": way, "CPU s a step": f"{found['seconds']:.1f}", "against all at once": f"{found['seconds'] / first['seconds']:.2f}"}
        row |= {"peak, MiB": f"{found['peak'] / MIB:.0f}", "against it": f"{found['peak'] / first['peak']:.2f}"}
        rows.append(row | {"gradient": f"{found['gradient'] / first['gradient'] - 1:+.1e}"})
    show(rows, title=f"{LAYERS} layers of {D_MODEL}, SAEs of {WIDTH}, {VOCABULARY} tokens; {SENTENCES} sentences of {LENGTH} tokens in two languages")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(json.dumps(step_cost(sys.argv[1])))
    else:
        main()
