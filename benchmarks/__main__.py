"""Time the jobs of lingact against what a user would do instead: python -m benchmarks analysis|evaluation|text|training|saes|start|slopes.

All ways use the same model, SAEs, texts and questions, and take turns. `floor` is no alternative, but the arithmetic that no way can avoid. Without
--model and --data the embedded toy model, text and items are used. The default size takes about three minutes, --full that of the published tables.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import analysis, bits, evaluation, planned, saes, slopes, start, steps
from benchmarks.setting import BATCH_TOKENS, LANGUAGES, Setting, load, text
from benchmarks.ways import Measured, measure_ways
from lingact.files.atomic import write_atomically
from lingact.runtime.terminal import note, show

JOBS: dict[str, Any] = {
    "analysis": analysis,
    "evaluation": evaluation,
    "text": bits,
    "training": steps,
    "saes": saes,
    "start": start,
    "slopes": slopes,
}


def main() -> None:
    """Print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--model", help="folder of a model")
    parser.add_argument("--data", help="folder with flores_sib200.jsonl and okapi_{arc,mmlu}_<lang>.jsonl")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--full", action="store_true", help="the size of the published tables")
    parser.add_argument("--width", type=int, default=4096, help="latents of an SAE")
    parser.add_argument("--rounds", type=int, help="how often each way has its turn")
    parser.add_argument("--ways", help="only these, separated by commas")
    given = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    job = JOBS[given.job]
    setting = Setting(model=given.model, data=given.data, width=given.width)
    if given.full:
        setting = replace(setting, sentences=20, items=20)
    ways = {name: prepare for name, prepare in job.WAYS.items() if given.ways is None or name in given.ways.split(",")}
    found = scaled(measure_ways(ways, setting, given.rounds or (5 if given.full else 2)), getattr(job, "SCALED", {}))
    rows = {name: measured.row for name, measured in found.items()}
    title = f"{given.job}: {given.model or 'embedded model'}, {described(given.job, setting)}"
    first = rows["lingact"]["seconds"] if "lingact" in rows else None
    beside = {} if first is None else {name: {"lingact is": f"{row['seconds'] / first:.2f}x"} for name, row in rows.items()}
    show([{"way": name} | {key: f"{value:.4g}" for key, value in row.items()} | beside.get(name, {}) for name, row in rows.items()], title=title)
    if given.job == "slopes":
        show(slopes.table(found), title="seconds of the whole, and of a further unit")
    if given.job in planned.PASSES and first is not None:
        expected = planned.seconds(given.job, setting)
        note(f"by the plan {expected:.1f} s, {expected / first:.2f} times what was measured")
    if given.job == "evaluation" and len(found) == 2:
        show([evaluation.compared(found["lingact"].result, found["lm_eval"].result)], title="lingact against lm-eval, log-likelihoods in nats")
    if given.json:
        write_atomically(given.json, json.dumps(rows, indent=1) + "\n")


def described(job: str, setting: Setting) -> str:
    """How much was done."""
    if job == "start":
        return "commands that compute nothing"
    if job == "slopes":
        return f"analysis, {slopes.SENTENCES} sentences in three languages; one of its sizes made larger"
    if job == "evaluation":
        return f"{setting.items} items of each benchmark in {', '.join(LANGUAGES)}"
    if job == "saes":
        return f"{len(saes.SETS)} mixes at three layers, {setting.width} latents, {saes.tokens_of(setting):,} tokens each"
    lm = load(setting)
    if job == "training":
        count = steps.tokens(lm, text(replace(setting, sentences=steps.SENTENCES)))
        return f"{count} tokens in {' and '.join(steps.CODES)}, SAEs of {setting.width} after two layers"
    count = sum(lm.tokens.count(texts) for texts in text(setting).texts.values())
    beside = f", SAEs of {setting.width} after {len(lm.blocks)} layers" if job == "analysis" else ""
    return f"{count} tokens in {', '.join(LANGUAGES)}, batches of {BATCH_TOKENS}{beside}"


def scaled(found: dict[str, Measured], factors: dict[str, int]) -> dict[str, Measured]:
    """Ways that do a part of the job count as often as it takes to do the whole."""
    return {name: replace(measured, seconds=[factors.get(name, 1) * each for each in measured.seconds]) for name, measured in found.items()}


if __name__ == "__main__":
    main()
