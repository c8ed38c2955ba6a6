"""What an analysis reads back from run folders: files that are damaged are named."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lingact.config import AnalyzeConfig, judge
from lingact.errors import UserError
from lingact.tracking import write_json
from lingact.workflows.analyze import as_measured
from lingact.workflows.observe import _links

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "content", [b"", b"[[1, 2]]", b"{", b"[1]", b"\xff", None], ids=["empty", "no page", "cut off", "no rows", "no text", "gone"]
)
def test_damaged_links_are_refused_with_their_path(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "links.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^'{path}' cannot be read: it is gone, cut off or of something else; put it back"):
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
        config = judge(AnalyzeConfig, compose("analyze", overrides=[f"stats=[{tmp_path}]"]))
    with pytest.raises(UserError, match=rf"^'{tmp_path / 'config.yaml'}' cannot be read: it is cut off or of something else; put it back"):
        as_measured(config)
