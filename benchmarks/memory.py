"""Does the memory of measuring grow with the corpus? Peak resident set size of `measure`, in a process of its own for each size."""

import json
import resource
import subprocess
import sys

from lingact.runtime.terminal import show

LANGUAGES = ("en", "zh", "ml")
SIZES = {512: (80, 800, 8000), 4096: (800, 8000)}
"""Batch tokens -> sentences, each ten times the one before. The fewest fill a batch: one that is not full needs less memory."""
MIB = 2**20


def measured_peak(batch_tokens: int, sentences: int) -> dict[str, int]:
    """Bytes at the peak of this process, and of the results that have an entry for each sentence, which must grow."""
    from benchmarks.embedded import embedded
    from lingact.activations.passes import measure

    lm, sae_sets, corpus = embedded(sentences)
    found = measure(lm, sae_sets, corpus.speaking(LANGUAGES), batch_tokens=batch_tokens, identity={})
    results = [array for code in LANGUAGES for array in found.arrays(code).values() if array.shape[-1] == sentences]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"peak": peak, "results": sum(array.nbytes for array in results)}


def main() -> None:
    """Print a row per size; the last column is the growth, beside the results, against a tenth of the sentences."""
    rows = []
    for batch_tokens, sizes in SIZES.items():
        before = None
        for sentences in sizes:
            # This process imports little: on Linux a child's peak is at least that of the process that started it.
            command = [sys.executable, "-m", "benchmarks.memory", str(batch_tokens), str(sentences)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            rest = found["peak"] - found["results"]
            row = {"batch tokens": batch_tokens, "sentences": sentences, "peak, MiB": f"{found['peak'] / MIB:.0f}"}
            row |= {"results, MiB": f"{found['results'] / MIB:.1f}", "rest, MiB": f"{rest / MIB:.0f}"}
            rows.append(row | {"growth": f"{rest / before - 1:+.1%}" if before else ""})
            before = rest
    show(rows, title=f"{len(LANGUAGES)} languages, 6 layers, two sets of SAEs")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(json.dumps(measured_peak(int(sys.argv[1]), int(sys.argv[2]))))
    else:
        main()
