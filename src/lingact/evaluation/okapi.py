"""Readers for Okapi's data that the loaders of `datasets` cannot read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset


def chinese_hellaswag(**_metadata: object) -> "dict[str, Dataset]":
    """The Chinese part of HellaSwag. Some of its endings are pairs of a Chinese and an English text, which JSON loaders refuse.

    Raises:
        OSError: it cannot be downloaded.
    """
    from datasets import Dataset
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download("alexandrainst/m_hellaswag", "data/zh/val.jsonl", repo_type="dataset"))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    for row in rows:
        row["endings"] = [ending["zh"] if isinstance(ending, dict) else ending for ending in row["endings"]]
    return {"val": Dataset.from_list(rows)}
