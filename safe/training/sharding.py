"""The frozen backbone split over processes, for backbones that one device cannot hold twice.

Only frozen decoder layers are split (FSDP2 of torch); the fusion layers stay whole, because their
attention weights are also the base of the fusion's LoRA and are used outside of the layer's own
forward pass. Every process must then run the same number of forward passes.
"""

from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from configs.errors import ConfigError
from safe.models.safe_model import SAFEModel


def shard_backbone(model: SAFEModel, accelerator: Accelerator) -> int:
    """Split the frozen layers of ``model`` without fusion over all processes.

    Each layer goes whole to the accelerator's device, and all but a share of it leaves again before
    the next one comes; the rest of the model stays where it is.

    Returns:
        How many layers were split.

    Raises:
        ConfigError: one process only, a quantised backbone, or one placed by a device map.
    """
    config = model.config
    if accelerator.num_processes < 2:
        raise ConfigError(
            "--shard needs two processes or more: start with "
            "`torchrun --nproc-per-node 2 $(which safe-train) phase1 --shard`"
        )
    for key in ("quantization", "device_map"):
        if getattr(config, key) is not None:
            raise ConfigError(
                f"--shard does not go with model.{key} = {getattr(config, key)!r}; set it to null"
            )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    whole = model.fusion.blocks()
    split = [layer for index, layer in model.layers.items() if index not in whole]
    for layer in split:
        # each is a root of its own, and roots would otherwise stay whole after a forward pass
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    return len(split)
