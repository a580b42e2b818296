"""The commands of the documents: where they stand, and what is said of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    file.relative_to(ROOT).as_posix() for file in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
)
_FENCE = re.compile(r"^ *```(\w*).*\n((?:.*\n)*?) *```$", re.MULTILINE)
FINDINGS = tuple(file.relative_to(ROOT).as_posix() for file in ROOT.glob("docs/findings/*.md"))
_OWN = r"(?:(?:torchrun|accelerate launch|srun) -|(?:safe-train|safe-probe|make) [a-z0-9])"
_INDENTED = re.compile(rf"^ {{4,}}({_OWN}(?:.*\\\n)*.*)$", re.MULTILINE)
_SPAN = re.compile(rf"`({_OWN}[^`]*)`")


@dataclass(frozen=True)
class Command:
    """One command of a fenced block."""

    page: str
    line: int
    text: str
    exits: int
    """What the comment behind it says (``# exits with 1``); 0 where it says nothing."""
    said: str
    """The text block behind the command's block: what it prints, shortened."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks_of(document: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and first line of every fenced block."""
    whole = document.read_text(encoding="utf-8")
    for found in _FENCE.finditer(whole):
        yield found[1], found[2], whole.count("\n", 0, found.start()) + 2


def commands(page: str) -> list[Command]:
    """The commands of the page's shell blocks, in order."""
    found = []
    every = list(blocks_of(ROOT / page))
    for index, (language, text, first) in enumerate(every):
        if language not in ("sh", "bash", "shell", "console"):
            continue
        following = every[index + 1] if index + 1 < len(every) else ("", "", 0)
        near = following[2] <= first + text.count("\n") + 8
        said = following[1] if following[0] == "text" and near else ""
        for line, command in _joined(text, first):
            if language == "console":
                if not command.startswith("$ "):
                    continue  # what it printed
                command = command[2:]
            exits = re.search(r"#.*exits with (\d)", command)
            command = re.sub(r"(^|\s)#.*", "", command).strip()
            if command:
                found.append(Command(page, line, command, int(exits[1]) if exits else 0, said))
    return found


def _joined(text: str, first: int) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; one that ends in a backslash goes on in the next."""
    begun, at = "", first
    for number, line in enumerate(text.splitlines(), first):
        at = at if begun else number
        begun += line.strip()
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        yield at, begun
        begun = ""


def mentioned(page: str) -> list[str]:
    """Commands in indented blocks, tables and sentences: patterns more often than commands."""
    whole = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    indented = [re.sub(r"\\\n\s*", "", text) for text in _INDENTED.findall(whole)]
    # behind two spaces stands what a command does, unless it is an option
    typed = [re.split(r"\s{2,}(?!--)", text)[0] for text in indented]
    return [*typed, *_SPAN.findall(_INDENTED.sub("", whole))]
