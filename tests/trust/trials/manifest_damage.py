"""Ways in which a manifest is damaged, odd or hostile."""

import json
import random
from collections.abc import Callable
from pathlib import Path

Lines = list[str]
HEADER = "audiocap_id,youtube_id,start_time,caption"
Made = tuple[str, bytes]
"""Name and bytes of the manifest."""


def _csv(lines: Lines, end: str = "\n", encoding: str = "utf-8") -> Made:
    return "train.csv", end.join([HEADER, *lines, ""]).encode(encoding)


def _somewhere(lines: Lines, new: str, choose: random.Random) -> Lines:
    place = choose.randrange(len(lines) + 1)
    return [*lines[:place], new, *lines[place:]]


def _row(make: Callable[[random.Random], str]) -> Callable[[Lines, random.Random], Made]:
    return lambda lines, choose: _csv(_somewhere(lines, make(choose), choose))


def _entry(**what: object) -> Callable[[Lines, random.Random], Made]:
    def make(lines: Lines, choose: random.Random) -> Made:
        entries = [json.dumps({"id": line.split(",")[1], "caption": "a dog"}) for line in lines]
        chosen = {k: choose.choice(v) if isinstance(v, list) else v for k, v in what.items()}
        return "train.jsonl", "\n".join(_somewhere(entries, json.dumps(chosen), choose)).encode()

    return make


def _nul(lines: Lines, choose: random.Random) -> Made:
    name, content = _csv(lines)
    place = choose.randrange(len(content))
    return name, content[:place] + b"\0" + content[place:]


def _outside(kind: str, root: Path) -> list[str]:
    """Paths to the file that lies outside the root."""
    secret = root.parent / "outside" / "secret.wav"
    found = {
        "dots": ["../outside/secret.wav", "audio/../../outside/secret.wav",
                 "./../outside/secret.wav", "..\\outside\\secret.wav",
                 "audio/train/../../../outside/secret.wav"],
        "absolute": [str(secret), f"//{secret}", f"\\{secret}", "C:\\secret.wav",
                     "file:///secret.wav"],
    }  # fmt: skip
    return found[kind]


def manifests(root: Path) -> dict[str, tuple[Callable[[Lines, random.Random], Made], bool]]:
    """What is done to it, and whether it can be read all the same; refused ones name the line."""
    return {
        "byte order mark": (lambda ls, _: _csv(ls, encoding="utf-8-sig"), True),
        "CRLF": (lambda ls, _: _csv(ls, "\r\n"), True),
        "CR": (lambda ls, _: _csv(ls, "\r"), True),
        "blank lines": (_row(lambda c: "\n" * c.randint(1, 5)), True),
        "NUL": (_nul, False),
        "UTF-16": (lambda ls, c: _csv(ls, encoding=c.choice(["utf-16", "utf-16-le"])), False),
        "Latin-1": (lambda ls, c: _csv(
            _somewhere(ls, "9,x,0,caf\xe9 noise", c), encoding="latin-1"), False),
        "stray quote": (_row(lambda c: f'9,x{c.randrange(99)},0,"a dog" barks'), False),
        "open quote": (_row(lambda _: '9,x,0,"a dog'), False),
        "comma too many": (_row(lambda _: "9,x,0,a dog, barking"), False),
        "row too short": (_row(lambda _: "9,x"), False),
        "no caption": (_row(lambda c: f"9,x,0,{c.choice(['', ' '])}"), False),
        "start of no number": (_row(lambda c: f"9,x,{c.choice(['NaN', '1e3', '-1'])},d"), False),
        "id with a path": (_row(lambda c: f"9,{c.choice(['../x', 'a/b', '..'])},0,a dog"), False),
        "id with a control": (_row(lambda c: f"9,x{chr(c.choice([1, 27, 127]))},0,a dog"), False),
        "two sounds for an id": (lambda _, __: (
            "train.jsonl", b'{"id":"x","caption":"a","audio":"a.wav"}\n'
            b'{"id":"x","caption":"b","audio":"b.wav"}\n'), False),
        "path with ..": (_entry(id="x", caption="a", audio=_outside("dots", root)), False),
        "absolute path": (_entry(id="x", caption="a", audio=_outside("absolute", root)), False),
        "NUL in JSON": (_entry(id="x\0", caption="a dog"), False),
        "half a surrogate": (_entry(id="x", caption="a\ud800"), False),
        "a list for an entry": (lambda _, __: ("train.jsonl", b'["x"]'), False),
        "deep JSON": (lambda _, c: ("train.json", b"[" * c.randrange(10**4, 10**5)), False),
    }  # fmt: skip
