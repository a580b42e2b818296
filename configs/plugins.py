"""Extension points: what other packages add by entry points; docs/extend.md has one of each.

Names are read from the packages' metadata. Nothing of theirs is imported until it is asked for.
"""

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from configs.errors import PluginError, SafeError


@dataclass(frozen=True)
class ExtensionPoint:
    """One group of entry points."""

    group: str
    """As it stands in a package's ``pyproject.toml``, e.g. ``safe_probe.probes``."""
    what: str
    """What an entry is, for messages."""
    builtin: tuple[str, ...] = ()
    """Names that no package may take."""

    def names(self) -> tuple[str, ...]:
        """The names that installed packages add, in alphabetical order; nothing is imported.

        Raises:
            PluginError: a name is built in, or two packages add it.
        """
        return tuple(sorted(self._found()))

    def load(self, name: str) -> Any:
        """Import what a package adds under ``name``.

        Raises:
            PluginError: it cannot be imported; the package and the reason are named.
        """
        try:
            return self._found()[name].load()
        except Exception as error:  # a stranger's import may raise anything
            raise self.broken(name, error) from error

    def broken(self, name: str, why: Exception | str) -> SafeError:
        """The error to raise when what ``name`` stands for does not do what it must.

        Args:
            name: one of :meth:`names`.
            why: what it did; an error that is meant for the user is returned as it is.
        """
        if isinstance(why, SafeError):
            return why
        reason = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
        return PluginError(
            f"the {self.what} {name!r} of package {_package(self._found()[name])} cannot be used "
            f"({reason}); repair that package or uninstall it"
        )

    def _found(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in _installed(self.group, tuple(sys.path)):
            if entry.name in self.builtin:
                raise PluginError(
                    f"package {_package(entry)} adds the {self.what} {entry.name!r}, which is "
                    "built in; uninstall it, or let it take another name"
                )
            other = found.setdefault(entry.name, entry)
            if other != entry:
                raise PluginError(
                    f"packages {_package(other)} and {_package(entry)} both add the {self.what} "
                    f"{entry.name!r}; uninstall one of them"
                )
        return found


@cache
def _installed(group: str, _path: tuple[str, ...]) -> EntryPoints:
    """What the packages on ``sys.path`` add; to read them all takes as long as a small probe."""
    return entry_points(group=group)


def _package(entry: EntryPoint) -> str:
    """Name and version of the package that an entry point stands in."""
    return "of unknown name" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
