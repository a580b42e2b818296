"""Files and folders that may not be read: an error or a row that names them, nothing else lost.

Root may read everything, so it gives that right away first.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safe.data.check import check_root

_READ_ALL = "--bounding-set=-dac_override,-dac_read_search"
MAIN = {"safe-train": "safe.cli", "safe-probe": "safe_probe.cli"}

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None,
    reason="needs another user than root, or setpriv, absent here",
)


def run(program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    as_somebody = ["setpriv", _READ_ALL] if os.geteuid() == 0 else []
    return subprocess.run(
        [*as_somebody, sys.executable, "-m", MAIN[program], *words], capture_output=True, text=True
    )


def test_a_sound_that_may_not_be_read_is_one_row(tiny_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_data, tmp_path / "clips"))
    sound = next((root / "audio" / "train").iterdir())
    sound.chmod(0)
    done = run("safe-train", "data", "check", root, "--json", "-")
    assert done.returncode == 0, done.stderr
    usable = check_root(tiny_data).splits["train"].usable
    assert f'"usable": {usable - 1}' in done.stdout and '"reason": "unreadable"' in done.stdout
    assert sound.stem in done.stdout


@pytest.mark.parametrize("words", [
    ("safe-train", "data", "check"), ("safe-probe", "report"), ("safe-probe", "compare"),
])  # fmt: skip
def test_a_folder_that_may_not_be_read_is_named(
    words: tuple[str, ...], tiny_run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "closed"
    shutil.copytree(tiny_run.folder, folder)
    folder.chmod(0)
    try:
        second = [tiny_run.folder] if "compare" in words else []
        done = run(words[0], *words[1:], folder, *second)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and str(folder) in done.stderr
    assert "Permission denied" in done.stderr
