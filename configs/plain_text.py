"""Foreign text (captions, clip ids, paths, messages) made safe to be shown, with nothing lost."""

import unicodedata

_STEERING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, bidirectional and other invisible marks, surrogates, line separators, no characters."""


def plain(text: object) -> str:
    r"""``text`` on one line, without a character that steers a terminal or turns the writing round.

    Escape codes, line ends, bidirectional marks and lone surrogates are shown as Python writes
    them: ``\x1b``, ``\n``, ``\u202e``, ``\ud800``.
    """
    return "".join(_shown(char) for char in str(text))


def plain_lines(text: object) -> str:
    """The same for text of several lines: it keeps its line ends (a line feed, nothing else)."""
    return "\n".join(map(plain, str(text).split("\n")))


def _shown(char: str) -> str:
    steers = unicodedata.category(char) in _STEERING
    return char.encode("unicode_escape").decode("ascii") if steers else char
