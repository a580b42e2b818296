"""How a run is started: where it talks and writes, on which device, with how many processes."""

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available, is_wandb_available
from rich.console import Console

from configs.errors import ConfigError
from configs.schema import RunConfig

_PATIENCE = timedelta(days=1)
"""How long processes wait for one that encodes clips or scores; the usual ten minutes are few."""


@dataclass(frozen=True)
class Launch:
    """How a run is started, as opposed to what it is (its configuration)."""

    console: Console
    """Where to talk."""
    output: Path = Path("runs")
    """Folder of runs."""
    name: str | None = None
    """Folder name of the run; by default the config's name with date and time."""
    device: str = "auto"
    """"auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N"."""
    shard: bool = False
    """Split the frozen backbone over the processes."""
    track: str | None = None
    """"tensorboard" or "wandb": mirror the metrics there through accelerate."""


def engine(config: RunConfig, launch: Launch) -> tuple[RunConfig, Accelerator]:
    """The configuration as this machine can run it, and accelerate set up for it.

    Raises:
        ConfigError: the tracker asked for is not installed, the device is not there, or several
            processes would each spread the backbone over all GPUs.
    """
    require_tracker(launch.track)
    _choose_gpu(launch.device)
    cpu = launch.device == "cpu"
    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    require_one_owner(config, state.num_processes)
    config, notes = adapt_to_machine(config, state.device)
    for note in notes:
        launch.console.print(f"  {note}", markup=False)
    AcceleratorState._reset_state()  # a notebook may have trained before, with another precision
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.optim.precision,
        log_with=launch.track,
        project_dir=str(launch.output) if launch.track else None,
    )
    return config, accelerator


def require_one_owner(config: RunConfig, processes: int) -> None:
    """Raise ConfigError when several processes would each spread the backbone over all GPUs."""
    if processes > 1 and config.model.device_map is not None:
        raise ConfigError(
            f"model.device_map = {config.model.device_map!r} spreads one backbone over all GPUs, "
            f"and {processes} processes would do so {processes} times; start one process, or set "
            "it to null (--shard splits the backbone over the processes)"
        )


def adapt_to_machine(config: RunConfig, device: torch.device) -> tuple[RunConfig, list[str]]:
    """Use float32 on a processor without bfloat16 arithmetic, where bfloat16 would crawl."""
    native = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if native or (config.model.dtype, config.optim.precision) == ("float32", "no"):
        return config, []
    model, optim = replace(config.model, dtype="float32"), replace(config.optim, precision="no")
    return replace(config, model=model, optim=optim), [
        "model.dtype and optim.precision bfloat16 -> float32: this processor has no bfloat16"
    ]


def _choose_gpu(device: str) -> None:
    """Make "cuda:N" the current device; an absent or unknown device is an error."""
    if device in ("auto", "cpu"):
        return
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdigit() or device == "cuda"):
        raise ConfigError(f"--device {device}: unknown; allowed: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        raise ConfigError(f"--device {device}: this machine has {count} CUDA devices; use cpu")
    if index:
        torch.cuda.set_device(int(index))


def require_tracker(name: str | None) -> None:
    """Raise ConfigError for a tracker that is not installed; accelerate drops it without a word."""
    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if name is not None and not available[name]():
        raise ConfigError(
            f"--track {name}: the package is not installed; pip install 'safe-probe[tracking]', "
            "or leave --track out (metrics.jsonl has the same numbers)"
        )
