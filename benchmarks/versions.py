"""What a figure was made with."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safe.training.environment import describe_code

_ALWAYS = ("torch", "transformers", "numpy")
_CPUINFO = Path("/proc/cpuinfo")


def versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Version by package (``not installed`` where it is not), Python's, commit and processor."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in (*_ALWAYS, *further)},
        "commit": _commit(),
        "processor": _processor(),
    }


def _commit() -> str:
    """The commit of this checkout, with ``, changed`` behind it where files were since."""
    state = describe_code(Path(__file__))
    if state is None:
        return "unknown"
    return f"{state['commit'][:12]}{', changed' if state['dirty'] else ''}"


def _processor() -> str:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
