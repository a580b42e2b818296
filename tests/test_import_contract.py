"""The rooms know each other in one direction only, and a `--help` needs nothing heavy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("configs", "safe", "probes", "reports", "safe_probe")


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_contract_is_kept(repo_root: Path) -> None:
    done = _lint_imports(repo_root)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the packages' Python files that a test may spoil and must restore."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(repo_root / "pyproject.toml", folder)
    for package in PACKAGES:
        for file in (repo_root / package).rglob("*.py"):
            target = folder / file.relative_to(repo_root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return folder


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("configs", "safe.paths"),
        ("configs", "torch"),
        ("safe", "safe_probe"),
        ("safe", "probes"),
        ("probes", "safe.paths"),
        ("probes", "reports"),
        ("reports", "torch"),
        ("reports", "safe.paths"),
    ],
)
def test_contract_sees_a_breach(copy: Path, room: str, forbidden: str) -> None:
    breach = copy / room / "breach.py"
    breach.write_text(f"import {forbidden}\n")
    try:
        done = _lint_imports(copy)
    finally:
        breach.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{room}.breach -> {forbidden}" in done.stdout


def test_command_line_of_safe_may_tie_rooms_together(copy: Path) -> None:
    for name in ("cli.py", "cli/__init__.py"):
        if (copy / "safe" / name).exists():
            break
    else:
        name = "cli.py"
    file = copy / "safe" / name
    before = file.read_text() if file.exists() else None
    file.write_text("import probes\nimport reports\nimport safe_probe\n")
    try:
        done = _lint_imports(copy)
    finally:
        file.unlink() if before is None else file.write_text(before)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "configs.adapt",
        "configs.arithmetic",
        "configs.model_configs",
        "configs.overrides",
        "configs.yaml_text",
        "probes",
        "reports",
        "safe",
        "safe.paths",
        "safe_probe",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
