"""The errors that a user's input can cause; a command prints them as one line and exits with 2."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

_MOST_SHOWN = 300  # characters
_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxdict = 20
_REPR.maxstring = _REPR.maxother = _MOST_SHOWN


class SafeError(ValueError):
    """Something in the user's input is wrong; the message says what, and what is allowed."""


class ConfigError(SafeError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(SafeError):
    """A manifest, an audio file or a data set cannot be used as it is."""


class ModelError(SafeError):
    """A backbone, an audio encoder or a tensor given to one does not fit."""


class CheckpointError(SafeError):
    """A checkpoint is missing, damaged, or was made by a run that does not match."""


class FileError(SafeError):
    """A file cannot be read as what it should be: a pipe, too large, damaged, or refused."""

    def __init__(self, path: object, why: object) -> None:
        super().__init__(path, why)

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be read: {self.why}"

    @property
    def why(self) -> str:
        """The reason without the file's name."""
        return shorten(str(self.args[1]))


class PluginError(SafeError):
    """What another package adds by an entry point clashes with something, or does not work."""


class MetricError(SafeError):
    """A score is undefined for what it was asked to score."""


def shorten(text: str) -> str:
    """Return `text` with "..." for its middle when it is too long for a message."""
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN - 50]}...{text[-47:]}"


def shown(value: object) -> str:
    """Return repr(value) for a message, shortened; never long, however large the value is."""
    try:
        return shorten(_REPR.repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"{type(value).__name__} with a number of too many digits"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or "" when nothing is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """Return "unknown KIND 'word'; did you mean 'x'? known: ..." for an error's message."""
    names = list(known)
    return (
        f"unknown {kind} {shown(word)}{did_you_mean(word, names) or ';'} known: {', '.join(names)}"
    )
