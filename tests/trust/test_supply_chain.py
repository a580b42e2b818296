"""What the program reaches for: no network, no stranger's code, nothing unpickled."""

import ast
import os
import subprocess
import sys
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
        if keyword(call, "trust_remote_code") not in (None, False):
            wrong.append(f"{where}: trust_remote_code")
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            wrong.append(f"{where}: torch.load without weights_only=True")
        if last in ("load", "loads", "Unpickler") and "pickle" in name:
            wrong.append(f"{where}: {name}")
        if last in ("load", "load_all", "unsafe_load", "full_load") and name.startswith("yaml."):
            loader = [ast.unparse(node) for node in call.args[1:]]
            if loader != ["_TextLoader"]:  # a SafeLoader that reads every scalar as text
                wrong.append(f"{where}: {name}")
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


def test_the_network_is_watched(trial: Any) -> None:
    assert trial("sockets:reach_out") == {"refused": 3}
