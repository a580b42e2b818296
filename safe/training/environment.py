"""What a run was made with: versions, code state, machine, command line. Nothing secret."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "safe-probe",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "laion-clap",
    "pycocoevalcap",
)


def describe_environment() -> dict[str, Any]:
    """Return JSON values that say what this process runs on.

    Holds package versions (None when not installed), the git state of the code itself (see
    :func:`describe_code`), the platform, processors, torch's threads and devices, and the command
    line with the home folder written as ~. Environment variables and the host's name are left out.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": describe_code(Path(__file__)),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        **_describe_torch(),
        "command": [_without_home(part) for part in sys.argv],
    }


def describe_code(file: Path) -> dict[str, Any] | None:
    """Return the git state of the repository that ``file``, a part of the code, is kept in.

    None when it is kept in none: an installed copy may lie inside somebody's repository (a
    virtual environment in a project does) without being a part of it.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    state = describe_git(file.parent)
    return state and {"of": "the folder of safe-probe's code", **state}


def describe_git(folder: Path) -> dict[str, Any] | None:
    """Return {"commit": hash, "dirty": tracked files changed}, or None outside a repository."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    # fsmonitor names a program that git would start: the folder may be a stranger's
    command = [git, "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _describe_torch() -> dict[str, Any]:
    import torch  # slow to load, and the trainer has it loaded already

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "cuda_version": torch.version.cuda,
        "devices": cuda or ["cpu"],
    }


def _without_home(text: str) -> str:
    home = os.path.expanduser("~")
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text
