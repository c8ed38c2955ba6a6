"""lm-evaluation-harness."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

_T = TypeVar("_T")


@contextmanager
def no_bars() -> Iterator[None]:
    """While open, lm-eval draws no progress bars over documents and requests.

    Versions: lm-eval 0.4.12 to 0.4.13; in 0.4.11 and before requests have no bar.
    Reason: `Task.build_all_requests` has no argument to switch its bar off.
    Upstream: https://github.com/EleutherAI/lm-evaluation-harness/issues/2898, open.
    """
    import lm_eval.api.model
    import lm_eval.api.task

    def hidden(each: Iterable[_T], **_: object) -> Iterable[_T]:
        return each

    with patch.object(lm_eval.api.task, "tqdm", hidden), patch.object(lm_eval.api.model, "tqdm", hidden):
        yield


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """While open, each prompt template is compiled once.

    Versions: lm-eval 0.4.9 to 0.4.13.
    Reason: lm-eval compiles a template again for every document, which takes longer than a small model needs to answer.
    Upstream: https://github.com/EleutherAI/lm-evaluation-harness/issues/1286, open.
    """
    import lm_eval.utils

    with patch.object(lm_eval.utils.env, "from_string", functools.cache(lm_eval.utils.env.from_string)):
        yield


def read_task_file(path: Path) -> dict[str, object]:
    """A task file with the files that it includes, its `!function` entries resolved.

    Versions: lm-eval 0.4.12 to 0.4.13; before, `lm_eval.utils.load_yaml_config` did it.
    Reason: the public `TaskManager` reads all 14,000 task files to find one, which takes ten seconds.
    Upstream: none known.

    Raises:
        OSError, ValueError, ImportError, AttributeError, RecursionError, TypeError, yaml.YAMLError: the file, or one that it names, cannot be read.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path)
