"""How we start the Java programs that pycocoevalcap ships (PTB tokenizer, METEOR).

pycocoevalcap's own wrappers write temp files into site-packages, inherit the locale (a decimal
comma breaks METEOR's numbers) and wait forever. The jars are the same; only the start differs.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
from pathlib import Path

# One encoding and one decimal point, whatever the machine's locale says.
JAVA = ("java", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")


@functools.cache
def java_available() -> bool:
    """Whether `java -version` really runs; a stub that fails counts as absent. Asked once."""
    try:
        done = subprocess.run(
            ["java", "-version"],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def jar(module: str, name: str) -> Path:
    """Path of the jar `name` that lies beside the installed Python module `module`."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{module} is a requirement of safe-probe"
    return Path(str(spec.origin)).with_name(name)
