"""How strongly do the model's features respond to each language, at every layer?"""

from pathlib import Path

from lingact import tables
from lingact.config import AnalyzeConfig
from lingact.figures import gaps as figures
from lingact.measure import BASE, measure
from lingact.report import gaps as report
from lingact.report.page import Section
from lingact.terminal import show
from lingact.tracking import open_run
from lingact.workflows.instruments import MEASURING, set_up


def run(config: AnalyzeConfig, folder: Path) -> None:
    """Measure every language, compare it with the reference, and write tables, figures and a report into the run folder."""
    with open_run("analyze", config, config.tracking, folder) as run:
        instruments = set_up(run, config)
        corpus = instruments.corpus.split(config.split, config.corpus.splits)
        tables.check_enough(len(corpus.ids))
        tables.named_ranges(instruments.layers, config.statistics)
        measured = measure(instruments.lm, instruments.meters, corpus, batch_tokens=config.batch_tokens, identity=instruments.identity)
        measured.save(folder / "stats")

        summary: dict[str, float] = {}
        pages: list[Section] = []
        for meter in instruments.meters:
            stats = measured.of(meter, BASE)
            found = tables.disparities(stats, config.languages, config.statistics, config.seed)
            confounds = tables.confound_table(stats, config.statistics, config.seed)
            ranges, layers = tables.range_table(found), tables.layer_table(found)
            suffix = "" if meter == MEASURING else f"_{meter}"
            run.table(f"gap_by_layer{suffix}", layers)
            run.table(f"gap_by_range{suffix}", ranges)
            run.table(f"confounds{suffix}", confounds)
            drawn = {
                f"gap_heatmap{suffix}": figures.gap_heatmap(found, config.languages),
                f"gap_groups{suffix}": figures.group_curves(found),
                f"confounds{suffix}": figures.confound_panel(confounds, config.languages),
            }
            paths = {name: run.figure(name, figure) for name, figure in drawn.items()}
            pages.append(Section(meter, paths, {report.BY_RANGE: ranges, report.BY_LAYER: layers}))
            summary |= {key if meter == MEASURING else f"{meter}/{key}": value for key, value in tables.gap_summary(found).items()}
            if meter == MEASURING:
                show(
                    report.gap_rows(ranges, config.languages),
                    title=f"Activation gap against {config.languages.reference}, {len(corpus.ids)} sentences ({config.split})",
                )
        run.summary(summary)
        report.write_analysis(folder, config, pages, instruments.identity, len(corpus.ids))
        show([{"run folder": str(folder), "report": str(folder / "report.html")}])
