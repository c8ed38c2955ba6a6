"""What an analysis reads back from run folders: files that are damaged are named."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lingact.config.jobs import AnalyzeConfig
from lingact.config.validation import validate_config
from lingact.errors import UserError
from lingact.files.atomic import write_json
from lingact.workflows.analyze import as_measured, scores_of_another_model
from lingact.workflows.observe import _links
from tests.helpers.paths import CONF


@pytest.mark.parametrize(
    "content", [b"", b"[[1, 2]]", b"{", b"[1]", b"\xff", None], ids=["empty", "no page", "cut off", "no rows", "no text", "gone"]
)
def test_damaged_links_are_refused_with_their_path(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^'{path}' cannot be read: it is missing, truncated or not a lingact file; put it back"):
        _links(path)
    write_json(path, [[1, 2, "https://example.org"]])
    assert _links(path) == {(1, 2): "https://example.org"}


@pytest.mark.parametrize(
    "content", [b"", b"measures: [", b"- a", b"seed: 1", b"\xff"], ids=["empty", "cut off", "a list", "a key is missing", "no text"]
)
def test_a_damaged_configuration_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"job": "analyze", "status": "complete"})
    (tmp_path / "config.yaml").write_bytes(content)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate_config(AnalyzeConfig, compose("analyze", overrides=[f"stats=[{tmp_path}]"]))
    with pytest.raises(UserError, match=rf"^'{tmp_path / 'config.yaml'}' cannot be read: it is truncated or not a lingact file; put it back"):
        as_measured(config)


def test_scores_of_another_model_are_told(tmp_path: Path) -> None:
    def run(folder: str, **model: str) -> Path:
        write_json(tmp_path / folder / "manifest.json", {"job": "eval", "status": "complete", "identity": {"model": model}})
        return tmp_path / folder

    here = run("here", name="gpt2", sha256="a", dtype="float32")
    same, half = run("same", name="gpt2", sha256="a", dtype="float32"), run("half", name="gpt2", sha256="c", dtype="float16")
    assert not scores_of_another_model((same, half, tmp_path / "scores.csv"), here)
    tuned, large = run("tuned", name="gpt2", sha256="b", dtype="float32"), run("large", name="gpt2-large", sha256="d", dtype="float16")
    said = scores_of_another_model((same, tuned, large), here)
    assert said == f"The scores in {tuned}, {large} belong to another model than the one whose gaps were measured."
