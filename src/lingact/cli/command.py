"""The installed command: `lingact train`, `lingact share` and so on. Libraries are loaded by the command that needs them."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lingact import __version__
from lingact.catalogue.languages import nearest
from lingact.runtime.interrupts import SIGNALS


@dataclass(frozen=True)
class _Command:
    what: str
    """A line of `lingact --help`."""
    start: Callable[[list[str]], int]
    """Takes the arguments and returns the exit code."""


def _job(name: str, arguments: list[str]) -> int:
    from lingact.cli.main import installed_main

    return installed_main(name, arguments)


def _share(arguments: list[str]) -> int:
    from lingact.cli.share import main

    return main(arguments)


_COMMANDS = {
    "train": _Command("train an adapter that closes the activation gap of chosen languages", partial(_job, "train")),
    "analyze": _Command("measure how strongly a model's features respond to each language", partial(_job, "analyze")),
    "eval": _Command("score benchmarks in each language, base model against adapters", partial(_job, "eval")),
    "saes": _Command("train SAEs of your own, with the languages of their text as a setting", partial(_job, "saes")),
    "share": _Command("push an adapter to the Hugging Face hub, with a model card", _share),
}


def main() -> None:
    """Run the command given by the arguments of this process, and exit."""
    leave(dispatch(sys.argv[1:]))


def leave(code: int) -> None:
    """Exit with this code. Everything is saved and reported by now, so a signal that arrives while Python ends could only change the code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def dispatch(arguments: list[str]) -> int:
    """Run one of the commands. Returns the exit code."""
    name, *others = arguments or ["--help"]
    if name in _COMMANDS:
        return _COMMANDS[name].start(others)
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"lingact {__version__}")
        return 0
    print(f"lingact:\n  no command '{name}'{nearest(name, _COMMANDS)} (commands: {', '.join(_COMMANDS)})", file=sys.stderr)
    return 2


def _help() -> str:
    lines = [f"  lingact {name:<9}{command.what}" for name, command in _COMMANDS.items()]
    return "\n".join(
        [
            "Measure, close and test activation disparities between languages in language models.",
            "",
            *lines,
            "",
            "lingact train lang=ml    a first run: no network, no GPU, no account",
            "lingact COMMAND --help   examples, options and values",
            "",
            "Your own options, such as conf/model/mine.yaml, are read from ./conf or --config-dir FOLDER. They take precedence over the package's.",
        ]
    )
