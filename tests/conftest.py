"""Fixtures and settings shared by all tests."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings
from rich.console import Console

from configs.model_configs import get_config
from configs.overrides import apply_values, dotted_fields
from configs.schema import RunConfig
from safe.data.synthetic import materialize_synthetic
from safe.evaluation.java import java_available
from tests.network import stay_here

if TYPE_CHECKING:
    from safe.evaluation.evaluate import Evaluation

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Make every run the same: one thread, deterministic kernels, fixed random examples."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # the same examples on every run, and no failure because a machine is busy
    settings.register_profile("house", derandomize=True, deadline=None)
    settings.load_profile("house")
    stay_here()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # below nohup, all would ignore it
    os.environ.pop("SLURM_JOB_ID", None)  # a test says itself when it is a job


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same torch seed."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _own_accelerator() -> Iterator[None]:
    """Leave no precision behind: accelerate keeps its state for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Return the root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with the real manifests and sounds that lies beside the repository."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the data folder beside the repository (../shared/data), absent here")
    return folder


@dataclass(frozen=True)
class TinyRun:
    """A finished run on a handful of built-in clips."""

    folder: Path
    """The run's folder."""
    config: RunConfig
    """What was asked for."""
    evaluation: "Evaluation"
    """What came back."""
    text: str
    """What was printed."""


def tiny_config(root: Path, **values: Any) -> RunConfig:
    """The demo on ``root``, cut down to six optimizer steps; dotted keys with "__" for "."."""
    small = {
        "data.root": str(root), "optim.batch_size": 4, "optim.accumulation": 2, "optim.epochs": 2,
        "optim.lr_projector": 1e-2, "optim.lr_adapter": 5e-3,  # two epochs must show
        "evaluation.max_new_tokens": 8, "evaluation.bootstrap": 50,
    }  # fmt: skip
    return apply_values(
        get_config("demo"), small | {key.replace("__", "."): v for key, v in values.items()}
    )


@contextmanager
def small_world(cache: Path) -> Iterator[None]:
    """A cache of our own, and no Java: each start of it costs a second."""
    java = cache / "bin" / "java"
    java.parent.mkdir(parents=True, exist_ok=True)
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFE_PROBE_CACHE", str(cache))
        patch.setenv("PATH", f"{java.parent}{os.pathsep}{os.environ['PATH']}")
        java_available.cache_clear()
        try:
            yield
        finally:
            java_available.cache_clear()


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for embeddings, shared by all tiny runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def in_small_world(tiny_cache: Path) -> Iterator[None]:
    """This module has the tiny runs' cache and no Java, its child processes too."""
    with small_world(tiny_cache):
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 training, 4 evaluation and 5 test clips in AudioCaps layout; copy before changing."""
    return materialize_synthetic(tmp_path_factory.mktemp("data") / "clips", train=22, val=4, test=5)


@pytest.fixture(scope="session")
def make_tiny_config() -> Callable[..., RunConfig]:
    """make_tiny_config(root, **{"optim__epochs": 1}) -> RunConfig."""
    return tiny_config


@pytest.fixture(scope="session")
def tiny_run(
    tiny_data: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> TinyRun:
    """One finished run, for everything that only reads; two epochs of three steps."""
    from safe.training.launch import Launch
    from safe.training.run import start

    console = Console(file=io.StringIO(), width=200)
    config, root = tiny_config(tiny_data), tmp_path_factory.mktemp("runs")
    launch = Launch(console=console, output=root, name="tiny", device="cpu")
    with small_world(tiny_cache):
        evaluation = start(config, dotted_fields(), launch)
    assert evaluation is not None and isinstance(console.file, io.StringIO)
    return TinyRun(root / "tiny", config, evaluation, console.file.getvalue())
