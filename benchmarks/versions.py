"""What a figure was made with."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

_ALWAYS = ("torch", "transformers", "numpy")


def versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Version by package, Python among them; ``not installed`` where it is not."""
    return {"python": platform.python_version()} | {n: _version(n) for n in (*_ALWAYS, *further)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
