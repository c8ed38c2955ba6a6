"""Tables on the terminal: aligned, never wider than a page, nothing cut."""

import pytest

from lingact.runtime.terminal import COLUMNS, show

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_numbers_to_the_right_words_to_the_left(capsys: Captured) -> None:
    show([{"language": "ml", "gap": "+0.12 [0.08, 0.15]", "n": 5}, {"language": "hindi", "gap": "-", "n": None}], title="Gaps")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Gaps",
        "language                 gap  n",
        "ml        +0.12 [0.08, 0.15]  5",
        "hindi                      -",
    ]


def test_brackets_are_not_markup_and_colours_are_for_terminals(capsys: Captured) -> None:
    show([{"lang": "[red]", "x": "[ml, hi]"}, {"lang": ":smile:", "x": "[/]"}])
    out = capsys.readouterr().out
    assert "[red]  [ml, hi]" in " ".join(out.split("\n")).replace("    ", "  ")
    assert ":smile:" in out
    assert "\x1b" not in out


def test_wide_tables_go_on_below_with_their_first_columns(capsys: Captured) -> None:
    show([{"job": job, "lang": "ml"} | {f"some/long/key/{i}": i / 3 for i in range(12)} for job in range(2)], fixed=2)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= COLUMNS
    assert all(f"some/long/key/{i}" in out for i in range(12))
    assert sum(line.startswith("job") for line in out.splitlines()) == out.count("\n\n") + 1


def test_a_path_stays_whole(capsys: Captured) -> None:
    path = "/tmp/" + "deep/" * 40 + "adapter with a space"
    show([{"adapter": path, "objective": "0.5"}])
    assert capsys.readouterr().out.splitlines() == [f"adapter:   {path}", "objective: 0.5"]


def test_long_cells_of_many_rows_are_folded_not_cut(capsys: Captured) -> None:
    path = "/" + "x" * 300
    show([{"corpus": path, "n": 1}, {"corpus": "/y", "n": 2}])
    out = capsys.readouterr().out
    assert out.count("x") == 300
    assert max(map(len, out.splitlines())) <= COLUMNS


def test_a_single_short_row_is_a_table(capsys: Captured) -> None:
    show([{"language": "ml", "won/lost": "40/23"}])
    assert capsys.readouterr().out.splitlines() == ["language  won/lost", "ml           40/23"]


def test_nothing_to_show(capsys: Captured) -> None:
    show([], title="Jobs")
    assert capsys.readouterr().out.split() == ["Jobs"]
