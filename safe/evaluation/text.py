"""From caption text to the tokens that metrics compare: cleaning, PTB, a rule without Java."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence

from configs.errors import MetricError
from safe.evaluation.java import JAVA, answer, jar, java_available

__all__ = ["TOKENIZERS", "choose_tokenizer", "clean_caption", "java_available", "tokenize"]

TOKENIZERS = ("ptb", "simple")
PTB_TIMEOUT_SECONDS = 300.0

# What pycocoevalcap drops after PTB. Its list also names -LRB- and the other brackets, but in
# capitals, while PTB has lowered them: brackets stay as tokens in every published figure.
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Line and paragraph separators, controls and lone surrogates: PTB reads one caption per line, and
# any of these would move text to the next clip's id (or cannot be encoded at all).
_BREAKING = frozenset({"Cc", "Cs", "Zl", "Zp"})


def clean_caption(text: str) -> str:
    """`text` on one line: separators and controls become spaces, runs of spaces collapse."""
    spaced = "".join(" " if unicodedata.category(char) in _BREAKING else char for char in text)
    return " ".join(spaced.split())


def choose_tokenizer(name: str = "auto") -> str:
    """The tokenizer that `name` stands for: "auto" is "ptb" where Java runs, else "simple".

    Raises:
        MetricError: unknown name, or "ptb" on a machine without Java.
    """
    if name == "auto":
        return "ptb" if java_available() else "simple"
    if name not in TOKENIZERS:
        raise MetricError(f"unknown tokenizer {name!r}; allowed: 'auto', 'ptb', 'simple'")
    if name == "ptb" and not java_available():
        raise MetricError(
            "tokenizer 'ptb' needs Java and `java -version` does not run here; "
            "install a Java runtime, or use tokenizer 'simple' (or 'auto')"
        )
    return name


def tokenize(captions: Mapping[str, Sequence[str]], tokenizer: str) -> dict[str, list[str]]:
    """Tokens of every caption, joined by single spaces, under the same ids and in the same order.

    Args:
        captions: id -> captions.
        tokenizer: "ptb" (Stanford's 3.4.1 as in pycocoevalcap) or "simple" (`simple_tokens`).

    Raises:
        MetricError: unknown tokenizer, no Java for "ptb", or PTB's answer does not fit the ids.
    """
    tokenizer = choose_tokenizer(tokenizer)
    first_id: dict[
        str, str
    ] = {}  # distinct cleaned captions in order, with the first id that has each
    for clip_id, texts in captions.items():
        for text in texts:
            first_id.setdefault(clean_caption(text), clip_id)
    if tokenizer == "ptb":
        tokens = _ptb(first_id)
    else:
        tokens = {text: " ".join(simple_tokens(text)) for text in first_id}
    return {key: [tokens[clean_caption(text)] for text in texts] for key, texts in captions.items()}


def _ptb(first_id: Mapping[str, str]) -> dict[str, str]:
    """Cleaned caption -> PTB tokens; `first_id` tells which clip to name when one is lost."""
    if not first_id:
        return {}
    # After each caption goes a numbered marker line. It proves line by line that nothing moved,
    # and gives every caption the same neighbour: PTB looks over the line end after "U.S.".
    lines = [line for n, text in enumerate(first_id) for line in (text, f"Line{n}")]
    answer = _run_ptb("\n".join(lines) + "\n").split("\n")
    for n, (text, clip_id) in enumerate(first_id.items()):
        if answer[2 * n + 1 : 2 * n + 2] != [f"line{n}"]:
            raise MetricError(
                f"the PTB tokenizer lost its place at clip {clip_id!r}, caption {text!r}: "
                f"{len(lines)} lines went in, {len(answer) - 1} came out; "
                "remove unusual characters from this caption or use tokenizer 'simple'"
            )
    return {
        text: " ".join(word for word in line.rstrip().split(" ") if word not in _DROPPED)
        for text, line in zip(first_id, answer[::2], strict=False)
    }


def _run_ptb(text: str) -> str:
    """The PTB tokenizer's answer to `text`, through pipes: no temp file anywhere."""
    path = jar("pycocoevalcap.tokenizer.ptbtokenizer", "stanford-corenlp-3.4.1.jar")
    command = [*JAVA, "-cp", str(path), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    try:
        return answer(command, text.encode(), PTB_TIMEOUT_SECONDS).decode()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        detail = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()[-300:]
        raise MetricError(
            f"the PTB tokenizer failed: {error}. {detail} Tokenizer 'simple' needs no Java."
        ) from error


# ---- the Java-free rule: what PTB does to plain English captions, in one pattern ----------------

# Curly single quotes become "'"; double quotes, guillemets, ellipsis and long dashes go.
_TYPOGRAPHIC = str.maketrans("\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026\u2013\u2014", "''       ")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CONTRACTED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}
_CLITIC = "'(?:s|re|ve|ll|d|m)"
_WORD = r"[^\s!-/:-@\[-`{-~]+"  # a run without ASCII punctuation
_TOKEN = re.compile(
    r"-[lr][rsc]b-"  # a bracket that was already named
    r"|(?:[a-z]\.){2,}"  # p.a.
    rf"|{_CLITIC}(?!{_WORD})|n't(?!{_WORD})"  # a part that was already split off
    rf"|\d+(?:[.,:]\d+)+(?!{_WORD})"  # 3:30, 1,000
    rf"|{_WORD}(?:[-'/._]{_WORD})*"  # clip-clop, o'clock, hisses/steam
    r"|[^\s]"  # any other sign stands alone
)
_SPLIT = re.compile(rf"(.+?)(n't|{_CLITIC})")


def simple_tokens(text: str) -> list[str]:
    """Tokens of one caption by the Java-free rule: lower case, punctuation gone, clitics split.

    Hyphens, slashes and apostrophes inside a word stay ("clip-clop"), "man's" gives "man", "'s",
    brackets get PTB's names. On the 57,188 AudioCaps captions one differs from PTB ("u'a").
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(clean_caption(text).lower().translate(_TYPOGRAPHIC)):
        if token in _DROPPED:
            continue
        split = _SPLIT.fullmatch(token)
        tokens += (
            split.groups() if split else _CONTRACTED.get(token, (_BRACKETS.get(token, token),))
        )
    return tokens
