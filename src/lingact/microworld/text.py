"""Makes sentences from facts and events, by hand-written lexicons and frames in one YAML file per language.

`python -m lingact.microworld.text ml` checks a lexicon and prints samples.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from lingact.microworld import LANGUAGES, world

_SLOT = re.compile(r"\{(?P<slot>[a-z])(?:\.(?P<form>\w+)|@(?P<of>[a-z])|(?P<choice>(?:\|\w+:[^|}]*)+))?\}")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.?!] ))\W*\w")


class LexiconError(Exception):
    """The lexicon lacks a word, form or frame that the knowledge base needs, or a frame is malformed."""


@dataclass(frozen=True)
class Lexicon:
    """One language's words (id -> form name -> text) and frames."""

    code: str
    delimiter: str
    words: dict[str, dict[str, str]]
    frames: dict[str, dict[str, str | list[str]]]
    events: dict[str, str]

    def form(self, word: str, name: str) -> str:
        """The form `name` of `word`; `w` is the citation form."""
        try:
            return self.words[word][name]
        except KeyError:
            raise LexiconError(f"{self.code}: word '{word}' has no form '{name}'") from None

    def fill(self, frame: str, slots: dict[str, str]) -> str:
        """The frame with its slots filled, and a capital at the start of each sentence in it."""
        filled = _SLOT.sub(lambda match: self._word(match, frame, slots), frame)
        return _SENTENCE_START.sub(lambda match: match[0].upper(), filled)

    def _word(self, match: re.Match[str], frame: str, slots: dict[str, str]) -> str:
        """The text that fills a slot of a frame."""
        slot = match["slot"]
        if slot not in slots:
            raise LexiconError(f"{self.code}: frame '{frame}' has an unknown slot {{{slot}}}")
        if match["choice"]:
            options = dict(option.split(":", 1) for option in match["choice"][1:].split("|"))
            return options[self.form(slots[slot], "g")]
        form = self.form(slots[match["of"]], "g") if match["of"] else match["form"] or "w"
        return self.form(slots[slot], form)

    def statements(self, fact: world.Fact) -> list[str]:
        """The plain statements of a fact."""
        return [self.fill(frame, _slots(fact)) for frame in self.frames[fact.relation]["d"]]

    def prompt_and_options(self, fact: world.Fact, style: str, options: Iterable[str]) -> tuple[str, list[str]]:
        """The text before the answer, and one ending per option; `style` is `q` or `h`."""
        frame = str(self.frames[fact.relation][style])
        prompts, endings = set(), []
        for option in options:
            # The answer slot is marked before filling, so that the text can be cut where the answer begins.
            cut = frame.replace("{o", "\0{o", 1)
            prompt, ending = self.fill(cut, {**_slots(fact), "o": option}).split("\0")
            prompts.add(prompt.rstrip())
            endings.append(ending)
        if len(prompts) != 1:
            raise LexiconError(f"{self.code}: the prompt of frame '{frame}' gives the answer away: {sorted(prompts)}")
        return prompts.pop(), endings

    def sentence(self, fact: world.Fact, style: str) -> str:
        """A fact in its question or narrative frame, with the right answer."""
        return self.fill(str(self.frames[fact.relation][style]), _slots(fact))

    def event(self, event: world.Event) -> str:
        """The sentence of an event."""
        return self.fill(self.events[event.event], dict(event.slots))


def _slots(fact: world.Fact) -> dict[str, str]:
    return {**dict(fact.slots), "o": fact.answer}


@cache
def lexicon(code: str) -> Lexicon:
    """Read the lexicon of a language."""
    raw = yaml.safe_load((files("lingact.microworld") / "lexicon" / f"{code}.yaml").read_text(encoding="utf-8"))
    words = {str(k): {"w": v} if isinstance(v, str) else v for k, v in raw["words"].items()}
    return Lexicon(code, raw["delimiter"], words, raw["frames"], raw["events"])


def problems(lex: Lexicon, facts: list[world.Fact]) -> list[str]:
    """Everything that is missing, ambiguous or malformed in a lexicon."""
    found: list[str] = []
    for fact in facts:
        frames = lex.frames.get(fact.relation, {})
        if len(frames.get("d", [])) != 2:
            found.append(f"relation {fact.relation}: two plain frames are needed")
        try:
            texts = lex.statements(fact)
            for style in ("q", "h"):
                _, endings = lex.prompt_and_options(fact, style, fact.options)
                if len(set(endings)) != len(endings):
                    doubles = sorted({e for e in endings if endings.count(e) > 1})
                    found.append(f"{fact.id} {style}: answers that look the same: {doubles}")
                texts.append(lex.sentence(fact, style))
            for text in texts:
                if text != text.strip() or "  " in text or "{" in text:
                    found.append(f"{fact.id}: malformed sentence {text!r}")
                if text[-1] not in ".!?。।":
                    found.append(f"{fact.id}: no full stop: {text!r}")
        except (LexiconError, KeyError) as problem:
            found.append(f"{fact.id}: {problem}")
    for name, slots in world.EVENTS.items():
        for slot, words in slots.items():
            for word in words:
                filled = {s: next(w for w in ws if w != word) for s, ws in slots.items()} | {slot: word}
                try:
                    lex.event(world.Event(name, tuple(filled.items())))
                except (LexiconError, KeyError) as problem:
                    found.append(f"event {name}: {problem}")
    return list(dict.fromkeys(found))


def main(codes: list[str]) -> int:
    """Check the lexicons and print every frame with three fillings."""
    facts = world.facts(seed=0)
    status = 0
    for code in codes or LANGUAGES:
        lex = lexicon(code)
        found = problems(lex, facts)
        status |= bool(found)
        out = sys.stdout.write
        out(f"== {code}: {len(lex.words)} words, {len(found)} problems\n" + "".join(f"  ! {p}\n" for p in found))
        if found:
            continue
        for relation in lex.frames:
            of_relation = [f for f in facts if f.relation == relation]
            for fact in of_relation[:: max(1, len(of_relation) // 4)][:4]:
                for sentence in (*lex.statements(fact), lex.sentence(fact, "q"), lex.sentence(fact, "h")):
                    out(f"{relation:9s} {sentence}\n")
        for name, slots in world.EVENTS.items():
            for turn in range(3):
                words = [(slot, ws[(turn * 7 + i * 3) % len(ws)]) for i, (slot, ws) in enumerate(slots.items())]
                out(f"{name:9s} {lex.event(world.Event(name, tuple(words)))}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
