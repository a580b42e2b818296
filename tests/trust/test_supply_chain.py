"""What the program reaches for: no network, no stranger's code, nothing unpickled."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("configs", "safe", "probes", "reports", "safe_probe", "scripts", "benchmarks")


def calls(root: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the program: where it stands, its dotted name, and itself."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    where = f"{file.relative_to(root)}:{node.lineno}"
                    yield where, ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> Any:
    """The constant given for a keyword; the node when it is no constant, None when absent."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


def test_no_strangers_code(repo_root: Path, figure: Any) -> None:
    count, wrong = 0, []
    for where, name, call in calls(repo_root):
        count += 1
        last = name.rpartition(".")[2]
        automatic = name.startswith("Auto") and last in ("from_pretrained", "from_config")
        if keyword(call, "trust_remote_code") not in (False, *(() if automatic else (None,))):
            wrong.append(f"{where}: trust_remote_code")  # left out, it asks who sits there
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            wrong.append(f"{where}: torch.load without weights_only=True")
        if last in ("load", "loads", "Unpickler") and "pickle" in name:
            wrong.append(f"{where}: {name}")
        if name.startswith("yaml.") and "load" in last and "yaml_text.py" not in where:
            wrong.append(f"{where}: {name}")  # its loaders refuse aliases and deep nesting
        if name in ("eval", "exec", "os.system", "torch.hub.load", "np.load", "numpy.load") or (
            keyword(call, "shell") not in (None, False)
        ):
            wrong.append(f"{where}: {name}")
    figure(f"calls in the program: {count} read, {len(wrong)} that load or run a stranger's code")
    assert wrong == []
    assert count > 3000


IMPORT_ALL = """
import sys
from trials.network import attempts, refuse_network
sys.addaudithook(refuse_network)
import importlib, pkgutil
count = 0
for package in ("configs", "safe", "probes", "reports", "safe_probe"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count, len(attempts))
"""


@pytest.mark.trust
@pytest.mark.slow
def test_no_network_at_import(repo_root: Path, figure: Any) -> None:
    path = os.pathsep.join([str(repo_root), str(repo_root / "tests" / "trust")])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    modules, attempts = map(int, done.stdout.split())
    figure(f"importing all {modules} modules: {attempts} calls of the network")
    assert modules > 100 and attempts == 0


@pytest.mark.parametrize("host", ["192.0.2.1", "example.invalid", "2001:db8::1"])
def test_no_test_reaches_another_machine(host: str) -> None:
    with pytest.raises(OSError, match="no test reaches another machine"):
        socket.create_connection((host, 443), timeout=1)


def test_the_network_is_watched(trial: Any) -> None:
    assert trial("sockets:reach_out") == {"refused": 3}


PINNED = re.compile(
    r"^([\w.-]+)==(\S+)(.*?)$((?:\n    --hash=sha256:[0-9a-f]{64}.*)*)", re.MULTILINE
)


def pins(file: Path) -> dict[str, str]:
    """Package to version, of a file of requirements."""
    return {canonical(found[1]): found[2] for found in PINNED.finditer(file.read_text())}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements.lock", ()), ("requirements-test.lock", ("test",))]
)
def test_locks_hold_what_constraints_pin(
    lock: str, extras: tuple[str, ...], repo_root: Path
) -> None:
    text, locked = (repo_root / lock).read_text(), pins(repo_root / lock)
    assert not re.search(r"https?://|--(extra-)?index|--find-links|file:", text)
    bare = [found[1] for found in PINNED.finditer(text) if "--hash=" not in found[4]]
    assert bare == []
    lines = [line for line in text.splitlines() if line[:1] not in ("", "#", " ")]
    assert len(lines) == len(locked) > 100  # nothing but pins
    constraints = pins(repo_root / "constraints.txt")
    assert {name: constraints.get(name) for name in locked if name != "setuptools"} == {
        name: version for name, version in locked.items() if name != "setuptools"
    }
    with (repo_root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    asked = [*project["dependencies"]]
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    names = {canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in asked}
    assert names <= set(locked)


def test_only_extras_are_pinned_and_not_locked(repo_root: Path) -> None:
    """What constraints.txt pins besides is what `dev` and `tracking` bring, which nothing installs
    by itself."""
    run, test = (pins(repo_root / f"requirements{x}.lock") for x in ("", "-test"))
    assert run.items() <= test.items()
    others = set(pins(repo_root / "constraints.txt")) - set(test)
    assert {"pre-commit", "tensorboard"} <= others and len(others) < 20


@pytest.mark.trust
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the lock is for Linux on x86-64")
def test_clean_install_by_hash(repo_root: Path, figure: Any, tmp_path: Path) -> None:
    """As the Makefile does: every file by its hash, then ours without asking for anything."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python, source = tmp_path / "venv" / "bin" / "python", tmp_path / "source"
    shutil.copytree(repo_root, source, ignore=shutil.ignore_patterns(".*", "runs", "*.egg-info"))
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    locked = ["--require-hashes", "-r", source / "requirements.lock"]
    subprocess.run([*install, *locked], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", source], check=True)
    every = [python, "-m", "pip", "freeze", "--all"]
    shown = subprocess.run(every, check=True, capture_output=True, text=True).stdout
    found = {canonical(name): version for name, version in re.findall(r"^(.+)==(.+)$", shown, re.M)}
    assert pins(source / "requirements.lock").items() - found.items() == set()
    for words in (["safe-train", "list"], ["safe-probe", "params", "--config", "phase1"]):
        subprocess.run([python.with_name(words[0]), *words[1:]], check=True, capture_output=True,
                       cwd=tmp_path)  # fmt: skip
    figure(f"clean install: {len(found)} packages, each file by its SHA-256; the commands start")
