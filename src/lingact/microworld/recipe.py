"""The hyperparameters of the toy model. They were chosen by accuracy, FVU and L0 alone, before any activation gap was measured."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DictionaryRecipe:
    """One set of SAEs: a batch-top-k SAE per layer, saved as JumpReLU."""

    width: int
    k: int
    lr: float = 3e-3
    batch_tokens: int = 1024
    train_tokens: int = 1_000_000
    """Training tokens, counting repeats."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the build depends on."""

    seed: int = 20261122
    # Each language's share of the documents in the training text, skewed like web text: English most, mr and ml least.
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "en": 0.30, "zh": 0.11, "ru": 0.13, "es": 0.115, "it": 0.11, "id": 0.05, "ca": 0.045, "hi": 0.05, "mr": 0.045, "ml": 0.045,
        }
    )  # fmt: skip
    corpus_events: int = 560
    vocabulary: int = 2560
    tokenizer_documents: int = 20_000
    context: int = 512
    row_tokens: int = 128
    long_row_share: float = 0.05
    """Share of the training tokens in rows as long as the context, so that every position is trained."""
    batch_rows: int = 16
    steps: int = 6500
    lr: float = 2.5e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    hidden_size: int = 128
    intermediate_size: int = 320
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    # The SAEs are trained on a mixture with even more English, like public ones.
    dictionary_shares: dict[str, float] = field(
        default_factory=lambda: {
            "en": 0.60, "zh": 0.08, "ru": 0.08, "es": 0.075, "it": 0.065, "id": 0.025, "ca": 0.025, "hi": 0.02, "mr": 0.015, "ml": 0.015,
        }
    )  # fmt: skip
    dictionary_tokens: int = 300_000
    """Distinct tokens whose residuals the SAEs are trained on."""
    sae: DictionaryRecipe = DictionaryRecipe(width=512, k=16)
    sae_heldout: DictionaryRecipe = DictionaryRecipe(width=1024, k=24)
