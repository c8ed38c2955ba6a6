"""The tables over the jobs of a multirun, from small run folders with numbers that can be averaged by hand."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from lingact.errors import UserError
from lingact.figures.sweep import trade_off
from lingact.files.atomic import write_json
from lingact.report import sweep, sweep_jobs

Captured = pytest.CaptureFixture[str]
LANGUAGES = {"reference": "en"}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def job(
    folder: Path, number: int, overrides: dict[str, str], summary: dict[str, float] | None = None, *, status: str = "complete", **config: Any
) -> None:
    """A job as Hydra's callback and the workflow leave it; a refused one has no folder."""
    run = folder / str(number)
    if status != "refused":
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump({"languages": LANGUAGES} | config), encoding="utf-8")
    if summary is not None:
        write_json(run / "summary.json", summary)
    record = {"job": number, "overrides": overrides, "status": status, "problem": None, "folder": str(run)}
    write_json(folder / ".jobs" / f"{number}.json", record)


def train(folder: Path, number: int, loss: str, seed: int, closed: float, **rest: Any) -> None:
    config = {"lang": ["ml"], "loss": {"control": "none", "gap": {"weight": 0.0 if loss == "lm_only" else 1.0, "objective": "activation"}}}
    numbers = {"gap_closed/ml": closed, "norm_matched/gap_closed/ml": closed / 2, "retention/kl": 0.01, "gain/ml": 9.0, "objective": closed}
    job(folder, number, {"lang": "ml", "loss": loss, "seed": str(seed)}, numbers, **(config | rest))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def line_of(printed: str, *words: str) -> list[str]:
    """The cells of the first printed line that begins with these words."""
    return next(cells for cells in map(str.split, printed.splitlines()) if tuple(cells[: len(words)]) == words)


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    """Two methods, the later name of the alphabet first: one with a failed seed, and one that was refused throughout."""
    for seed, closed in enumerate((0.5, 0.75, 1.0)):
        train(tmp_path, seed, "profile", seed, closed)
    train(tmp_path, 3, "lm_only", 0, 0.25)
    train(tmp_path, 4, "lm_only", 1, 100.0, status="failed")  # it fell after its summary was written
    train(tmp_path, 5, "lm_only", 2, -0.25)
    for seed in range(3):
        job(tmp_path, 6 + seed, {"lang": "ml", "loss": "hinge", "seed": str(seed)}, status="refused")
    return tmp_path


def test_seeds_are_averaged_for_each_combination(methods: Path) -> None:
    sweep.write_tables(methods)
    rows = read(methods / "over_seeds.csv")
    assert [row["loss"] for row in rows] == ["profile", "lm_only", "hinge"]
    assert "lang" not in rows[0], "all jobs share it"
    profile = {name: rows[0][f"gap_closed/ml{name}"] for name in ("", "/lowest", "/highest", "/n")}
    assert profile == {"": "0.75", "/lowest": "0.5", "/highest": "1.0", "/n": "3"}
    assert not any(name.startswith("gain") for name in rows[0])


def test_jobs_that_are_not_complete_are_named_and_in_no_mean(methods: Path, capsys: Captured) -> None:
    sweep.write_tables(methods)
    _, lm_only, hinge = read(methods / "over_seeds.csv")
    assert (lm_only["n"], lm_only["objective"], lm_only["objective/highest"]) == ("2", "0.0", "0.25")
    assert lm_only["not_complete"] == "job 4 (seed 1) failed"
    assert (hinge["n"], hinge["objective"]) == ("0", "")
    assert hinge["not_complete"].count("refused") == 3
    printed = capsys.readouterr().out
    assert "4 of 9 jobs" in printed
    assert line_of(printed, "hinge") == ["hinge", "0", "-", "-"]
    assert line_of(printed, "4") == ["4", "lm_only", "1", "failed"]


def test_the_table_per_job_stays(methods: Path) -> None:
    sweep.write_tables(methods)
    rows = read(methods / "sweep.csv")
    assert [(row["job"], row["status"]) for row in rows[3:7]] == [("3", "complete"), ("4", "failed"), ("5", "complete"), ("6", "refused")]
    assert rows[4]["gap_closed/ml"] == "100.0"


def test_a_cell_is_mean_and_range(methods: Path, capsys: Captured) -> None:
    sweep.write_tables(methods)
    printed = capsys.readouterr().out
    assert "over seeds 0, 1, 2; brackets: a range, not a confidence interval" in printed
    assert "Gap closed of ml" in printed
    assert line_of(printed, "profile") == ["profile", "3", "0.75", "[0.50,", "1.00]", "0.38", "[0.25,", "0.50]"]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ((0.5,), "0.50"),
        ((-0.001, 0.001), "0.00 [0.00, 0.00]"),
        ((-20.0, -4.0), "-12.0 [-20.0, -4.0]"),
    ],
)
def test_cells_are_short(values: tuple[float, ...], cell: str) -> None:
    assert sweep.Spread.of(values).cell(2, len(values)) == cell


def test_a_number_that_is_undefined_on_a_seed_says_so(tmp_path: Path, capsys: Captured) -> None:
    for seed, summary in enumerate(({"gap_closed/ml": 1.0}, {"gap_closed/ml/undefined": 1.0}, {"gap_closed/ml": 0.0})):
        job(tmp_path, seed, {"seed": str(seed)}, summary | {"objective": 0.5}, lang=["ml"])
    sweep.write_tables(tmp_path)
    [row] = read(tmp_path / "over_seeds.csv")
    assert (row["n"], row["gap_closed/ml"], row["gap_closed/ml/n"]) == ("3", "0.5", "2")
    assert "0.50 [0.00, 1.00] n=2" in capsys.readouterr().out


def test_without_two_seeds_of_anything_jobs_stand_alone(tmp_path: Path, capsys: Captured) -> None:
    train(tmp_path, 0, "profile", 0, 0.5)
    train(tmp_path, 1, "lm_only", 1, 0.25)
    sweep.write_tables(tmp_path)
    assert not (tmp_path / "over_seeds.csv").exists()
    printed = capsys.readouterr().out
    assert "Jobs" in printed
    assert line_of(printed, "0") == ["0", "profile", "0", "complete", "0.50", "0.25"]


def test_tables_of_an_earlier_sweep_do_not_stand_beside_those_of_a_smaller_one(methods: Path) -> None:
    sweep.write_tables(methods)
    earlier = (methods / "over_seeds.csv").read_bytes()
    for record in (methods / ".jobs").glob("*.json"):
        if record.stem != "0":
            record.unlink()  # as a sweep of one job does that is started in this folder
    sweep.write_tables(methods)
    assert len(read(methods / "sweep.csv")) == 1
    assert not (methods / "over_seeds.csv").exists()
    assert (methods / "over_seeds.csv.before").read_bytes() == earlier


def test_every_target_has_a_row_and_the_reference_one(tmp_path: Path, capsys: Captured) -> None:
    for seed in range(2):
        both = {"gap_closed/ml": 0.5, "gap_closed/hi": 0.25, "retention/kl": 0.5}
        job(tmp_path, seed, {"lang": "[ml,hi]", "seed": str(seed)}, both, lang=["ml", "hi"])
    sweep.write_tables(tmp_path)
    printed = capsys.readouterr().out
    assert line_of(printed, "2", "ml")[2:] == ["0.50", "[0.50,", "0.50]"]
    assert line_of(printed, "2", "hi")[2:] == ["0.25", "[0.25,", "0.25]"]
    assert printed.count("0.5000 [0.5000, 0.5000]") == 1, "KL once"


def test_a_language_is_not_said_twice(tmp_path: Path) -> None:
    for number, code in enumerate(("ml", "hi")):
        job(tmp_path, number, {"lang": code}, {f"gap_closed/{code}": number / 4}, lang=[code])
    jobs = [sweep_jobs.read_job(record) for record in sweep_jobs.records(tmp_path)]
    [table] = sweep.tables([sweep._single(found, jobs) for found in jobs])
    assert table.title == "Gap closed of ml, hi"
    assert table.rows == [
        {"job": "0", "lang": "ml", "status": "complete", "plain": "0.00"},
        {"job": "1", "lang": "hi", "status": "complete", "plain": "0.25"},
    ]


def evaluation(folder: Path, number: int, adapter: Path, delta: float) -> None:
    scores = {"acc/all/ml/delta": delta, "acc/all/en/delta": -delta, "acc/all/zh/delta": 0.5, "acc/arc/ml/delta": 0.5, "acc/all/ml/p": 0.5}
    job(folder, number, {"adapter": str(adapter)}, scores, adapter=str(adapter))


def test_evaluations_bear_the_names_of_their_training(methods: Path, tmp_path_factory: pytest.TempPathFactory, capsys: Captured) -> None:
    folder = tmp_path_factory.mktemp("evaluations")
    for number, (trained, delta) in enumerate(((0, 0.25), (1, 0.75), (3, -0.5), (5, 0.0))):
        evaluation(folder, number, methods / str(trained) / ("adapter" if trained == 1 else ""), delta)
    sweep.write_tables(folder)
    assert [(row["loss"], row["n"], row["acc/all/ml/delta"]) for row in read(folder / "over_seeds.csv")] == [
        ("profile", "2", "0.5"),
        ("lm_only", "2", "-0.25"),
    ]
    printed = capsys.readouterr().out
    assert line_of(printed, "loss") == ["loss", "n", "ml", "en"], "the adapter's language and the reference, all benchmarks together"
    assert read(folder / "sweep.csv")[0]["adapter"] == str(methods / "0")
    assert "acc/arc/ml/delta" in read(folder / "sweep.csv")[0]


def test_adapters_from_elsewhere_keep_their_names(tmp_path: Path, capsys: Captured) -> None:
    for number, name in enumerate(("me/one", "me/two")):
        evaluation(tmp_path, number, Path(name), 0.25)
    sweep.write_tables(tmp_path)
    printed = capsys.readouterr().out
    assert line_of(printed, "job") == ["job", "adapter", "status", "ml", "en", "zh"], "whose languages are not known: all"
    assert line_of(printed, "0", "me/one")
    assert not (tmp_path / "over_seeds.csv").exists()


def test_two_sweeps_with_the_same_settings_are_not_mixed(methods: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other, folder = (tmp_path_factory.mktemp(name) for name in ("other", "evaluations"))
    train(other, 0, "profile", 0, 0.5)
    for number, run in enumerate((methods / "0", methods / "1", other / "0")):
        evaluation(folder, number, run, 0.25)
    sweep.write_tables(folder)
    assert not (folder / "over_seeds.csv").exists(), "seed 0 twice would pass for two seeds"


def test_fifteen_methods_fit_the_terminal(tmp_path: Path, capsys: Captured) -> None:
    names = [f"gap_and_something{i:02d}" for i in range(15)]
    for number in range(45):
        keys = ("gap_closed", "norm_matched/gap_closed", "heldout/gap_closed", "heldout/norm_matched/gap_closed")
        numbers = {f"{key}/ml": -3.5 + number / 100 for key in keys} | {
            f"retention/{key}": 0.9 for key in ("activation", "profile", "bits_per_byte", "kl")
        }
        job(tmp_path, number, {"loss": names[number // 3], "seed": str(number % 3)}, numbers, lang=["ml"])
    sweep.write_tables(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 110
    assert sum(line.startswith("loss") for line in lines) == 2, "nothing goes on below: gaps in one block, retention in one"


def test_the_page_shows_what_was_gained_against_its_cost(methods: Path) -> None:
    sweep.write_tables(methods)
    page = (methods / "report.html").read_text(encoding="utf-8")
    assert "5 of 9 jobs are complete." in page
    assert "0.75 [0.50, 1.00]" in page
    assert (methods / "figures" / "trade_off.png").is_file()


def test_trade_off_draws_every_point_or_names_it() -> None:
    def point(label: str, closed: float, kl: float, *, control: bool = False) -> dict[str, Any]:
        values = {"closed": closed, "kl": kl, "fvu_ratio": float("nan")}
        spread = {f"{name}{end}": value + step for name, value in values.items() for end, step in (("", 0), ("/lowest", -0.001), ("/highest", 0.001))}
        return {"label": label, "control": control, "language": "ml"} | spread

    points = [point("a", 0.9, 0.01), point("b", 0.9, 0.01), point("c", -7.25, 0.5), point("d", 0.1, 0.2, control=True)]
    figure = trade_off(pd.DataFrame(points))
    [axes] = figure.axes
    assert axes.get_title() == "ml; not drawn: 3 (-7.2)"
    assert sorted(text.get_text() for text in axes.texts) == ["1, 2", "4"], "a and b lie on top of each other"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1 a", "2 b", "3 c", "4 d"]
    assert figure.legends[0].get_title().get_text() == "squares: controls"


@pytest.mark.parametrize(
    "content", [b"{", b"", b"[]", b"\xff", b'{"job": 0, "job": 1}'], ids=["cut off", "empty", "a list", "no text", "a key twice"]
)
@pytest.mark.parametrize("name", [".jobs/0.json", "0/summary.json", "0/config.yaml"])
def test_a_damaged_file_is_refused_with_its_path(name: str, content: bytes, methods: Path) -> None:
    (methods / name).write_bytes(b"a: [" if name.endswith("yaml") and content != b"\xff" else content)
    with pytest.raises(UserError, match=rf"^'{methods / name}' cannot be read: it is truncated or not a lingact file; "):
        sweep.write_tables(methods)
