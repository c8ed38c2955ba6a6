"""Corpora by their configuration: from files, from the hub, or pairs of languages."""

from lingact.config.data import FilesCorpus, HubCorpus, PairsCorpus
from lingact.data.corpus import ParallelCorpus
from lingact.data.corpus_files import from_files
from lingact.data.corpus_hub import from_hub, from_pairs
from lingact.errors import UserError


def load_corpus(config: FilesCorpus | HubCorpus | PairsCorpus, codes: tuple[str, ...]) -> ParallelCorpus:
    """The corpus in the given languages, each sentence once.

    Args:
        codes: the reference first. Of pairs, the reference and one other.

    Raises:
        UserError: what is missing, empty or ragged, and where; or the hub does not give it.
    """
    match config:
        case FilesCorpus():
            corpus = from_files(config, codes)
        case HubCorpus():
            corpus = from_hub(config, codes)
        case PairsCorpus():
            corpus = from_pairs(config, *codes)
    return corpus.select(list(range(len(corpus.ids)))[: config.max_sentences])


def load_training_text(
    corpus: FilesCorpus | HubCorpus | PairsCorpus, codes: tuple[str, ...], measured: ParallelCorpus
) -> tuple[ParallelCorpus, dict[str, str | int]]:
    """The split train of a corpus that is trained on while another one is measured on, and what the manifest keeps of it.

    Sentences that the measured one has, too, are left out: what judges must not have been trained on.

    Raises:
        UserError: as `load_corpus`; or nothing is left.
    """
    whole = load_corpus(corpus, codes)
    train = whole.split("train", corpus.splits)
    new = train.without(measured)
    if not new.ids:
        raise UserError(
            f"train_corpus: all {len(train.ids)} sentences of the split train of '{train.name}' are in the measured corpus '{measured.name}', too; "
            "train on another corpus, or leave train_corpus out to train on the split train of the measured one"
        )
    return new, new.identity | {"also_measured_on": len(train.ids) - len(new.ids)}
