"""Fixtures and settings shared by all tests."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Make every run the same: one thread, deterministic kernels, fixed random examples."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # the same examples on every run, and no failure because a machine is busy
    settings.register_profile("house", derandomize=True, deadline=None)
    settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same torch seed."""
    torch.manual_seed(0)


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
