"""The registry holds the agreed values, and the script prints them from anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.model_configs import CONFIGS, get_config

LLAVA = "llava-hf/llava-1.5-13b-hf"
# one row per line of the plan's table: full, phase1, phase2
AGREED = {
    "model.backbone": (LLAVA, LLAVA, LLAVA),
    "model.hidden_size": (5120, 5120, 5120),
    "model.num_layers": (40, 40, 40),
    "model.audio_dim": (512, 512, 512),
    "model.projector.bottleneck_dim": (1024, 1024, None),
    "model.projector.num_tokens": (16, 32, 32),
    "model.projector.scale": (2.0, 10.0, 10.0),
    "model.fusion.lora_rank": (8, 64, 64),
    "model.fusion.layers": ((6, 12, 24), (8, 16, 24, 32), (8, 16, 24, 32)),
    "model.fusion.gate_init": (0.05, 0.3, 0.3),
    "model.fusion.gate_max": (0.3, 1.0, 1.0),
    "model.fusion.gate_warmup_steps": (2000, 0, 0),
    "optim.lr_projector": (2e-4, 1e-3, 1e-3),
    "optim.lr_adapter": (1e-4, 5e-4, 5e-4),
    "optim.batch_size": (8, 4, 4),
    "optim.accumulation": (16, 32, 32),
    "optim.epochs": (20, 20, 50),
    "retention.variant": ("soft_retention", "no_retention", "no_retention"),
    "data.root": ("experiments/full_training/data/audiocaps",) * 3,
}


@pytest.mark.parametrize("key", AGREED)
def test_registry_holds_the_agreed_values(key: str) -> None:
    for name, expected in zip(("full", "phase1", "phase2"), AGREED[key], strict=True):
        value: object = CONFIGS[name]
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, name


def test_registry_names() -> None:
    assert list(CONFIGS) == ["demo", "full", "phase1", "phase2"]
    assert all(name == config.name for name, config in CONFIGS.items())
    assert get_config("demo") is CONFIGS["demo"]
    assert (get_config("demo").model.backbone, get_config("demo").data.root) == (
        "embedded",
        "synthetic",
    )


def test_near_miss() -> None:
    message = "^unknown config 'phas1'; did you mean 'phase1'. known: demo, full, phase1, phase2$"
    with pytest.raises(ConfigError, match=message):
        get_config("phas1")


def test_no_near_miss() -> None:
    with pytest.raises(
        ConfigError, match="^unknown config 'x'; known: demo, full, phase1, phase2$"
    ):
        get_config("x")


def _script(root: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the table without site-packages (-S): the standard library must be enough."""
    command = [sys.executable, "-S", str(root / "configs" / "model_configs.py")]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_script_prints_the_table_from_a_folder_with_its_own_configs(
    repo_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise SystemExit('the wrong configs')")
    done = _script(repo_root, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:28].strip(): line[28:].split() for line in done.stdout.splitlines()}
    assert rows["config"] == ["demo", "full", "phase1", "phase2"]
    assert rows["projector parameters"][1:] == ["84,493,312", "168,461,312", "84,049,920"]
    assert rows["LoRA parameters"][1:] == ["983,040", "10,485,760", "10,485,760"]
    assert rows["trainable parameters"][1:] == ["85,477,379", "178,948,100", "94,536,708"]
    assert "4 configs, all valid" in done.stdout


def test_script_names_an_invalid_config_and_exits_2(repo_root: Path, tmp_path: Path) -> None:
    shutil.copytree(repo_root / "configs", tmp_path / "configs")
    registry = tmp_path / "configs" / "model_configs.py"
    registry.write_text(registry.read_text().replace("gate_init=0.05", "gate_init=0.5"))
    done = _script(tmp_path, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "ConfigError: model.fusion.gate_init = 0.5: must be between 0 and "
        "model.fusion.gate_max = 0.3\n"
    )
