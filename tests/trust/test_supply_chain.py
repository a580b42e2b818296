"""What the program reaches for: no network, no stranger's code, nothing unpickled."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("configs", "safe", "probes", "reports", "safe_probe", "scripts", "benchmarks")


def calls(root: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the program: where it stands, its dotted name, and itself."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            for line, name, node in calls_in(file.read_text(encoding="utf-8")):
                yield f"{file.relative_to(root)}:{line}", name, node


def calls_in(code: str) -> Iterator[tuple[int, str, ast.Call]]:
    """Every call in a module: its line, its name from the package it is imported from, itself."""
    tree = ast.parse(code)
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            known |= {name.asname: name.name for name in node.names if name.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            yield node.lineno, f"{known.get(first, first)}{dot}{rest}", node


def keyword(call: ast.Call, name: str) -> Any:
    """The constant given for a keyword; the node when it is no constant, None when absent."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


RUNS_CODE = (
    "eval", "exec", "os.system", "os.popen", "torch.hub.load", "torch.jit.load", "numpy.load",
    "pandas.read_pickle", "joblib.load", "marshal.loads", "marshal.load", "shelve.open",
)  # fmt: skip


def loads_strangers_code(where: str, name: str, call: ast.Call) -> bool:
    """Whether a call could load or run what a stranger wrote."""
    last = name.rpartition(".")[2]
    automatic = ".Auto" in name and last in ("from_pretrained", "from_config")
    trusting = keyword(call, "trust_remote_code")
    return (
        trusting not in (False, *(() if automatic else (None,)))  # left out, it asks who sits there
        or (name == "torch.load" and keyword(call, "weights_only") is not True)
        or (last in ("load", "loads", "Unpickler") and "pickle" in name)
        # the loaders in yaml_text refuse aliases and deep nesting
        or (name.startswith("yaml.") and "load" in last and "yaml_text.py" not in where)
        or name in RUNS_CODE
        or keyword(call, "shell") not in (None, False)
    )


@pytest.mark.parametrize("code", [
    "import torch\ntorch.load(f)", "from torch import load\nload(f)",
    "import torch as t\nt.load(f)", "from torch import load as read\nread(f, weights_only=False)",
    "import dill.pickle as p\np.load(f)", "import numpy as np\nnp.load(f, allow_pickle=True)",
    "import pandas as pd\npd.read_pickle(f)", "from pickle import loads\nloads(f)",
    "import torch\ntorch.jit.load(f)", "eval(f)", "import joblib\njoblib.load(f)",
    "import yaml\nyaml.load(f, yaml.Loader)", "from yaml import unsafe_load\nunsafe_load(f)",
    "import subprocess as s\ns.run(f, shell=True)",
    "from transformers import AutoModel\nAutoModel.from_pretrained(f)",
    "import transformers\ntransformers.AutoModel.from_pretrained(f, trust_remote_code=True)",
])  # fmt: skip
def test_strangers_code_is_noticed(code: str) -> None:
    assert [n for _, n, call in calls_in(code) if loads_strangers_code("x.py:1", n, call)]


def test_no_strangers_code(repo_root: Path, figure: Any) -> None:
    count, wrong = 0, []
    for where, name, call in calls(repo_root):
        count += 1
        if loads_strangers_code(where, name, call):
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


def _connect_quietly(host: str) -> None:
    with socket.socket() as ours:
        ours.settimeout(1)
        ours.connect_ex((host, 443))


def _send(host: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as ours:
        ours.sendto(b"x", (host, 53))


@pytest.mark.parametrize(("reach", "host"), [
    (lambda host: socket.create_connection((host, 443), timeout=1), "192.0.2.1"),
    (lambda host: socket.create_connection((host, 443), timeout=1), "example.invalid"),
    (_connect_quietly, "192.0.2.1"), (_send, "192.0.2.1"),
    (socket.gethostbyname, "example.invalid"),
])  # fmt: skip
def test_no_test_reaches_another_machine(reach: Callable[[str], object], host: str) -> None:
    with pytest.raises(OSError, match="no test reaches another machine"):
        reach(host)


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
