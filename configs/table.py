"""Configs side by side as plain text, with the size of what each one trains."""

import sys
from collections.abc import Iterable, Sequence

from configs.arithmetic import count_parameters
from configs.errors import ConfigError
from configs.schema import RunConfig


def describe_run(config: RunConfig) -> dict[str, str]:
    """Return the settings that tell configs apart, by the name of their row."""
    model, optim, fusion = config.model, config.optim, config.model.fusion
    bottleneck = model.projector.bottleneck_dim
    counts = count_parameters(model)
    return {
        "backbone": model.backbone,
        "hidden size / decoder layers": f"{model.hidden_size} / {model.num_layers}",
        "audio encoder": model.audio_encoder,
        "audio embedding": f"{model.audio_dim} ({model.audio_features})",
        "projector": model.projector.kind,
        "projector bottleneck": "none" if bottleneck is None else str(bottleneck),
        "audio tokens": str(model.projector.num_tokens),
        "projector scale": str(model.projector.scale),
        "LoRA rank": str(fusion.lora_rank),
        "fusion layers": str(list(fusion.layers)),
        "residual gate init / max": f"{fusion.gate_init} / {fusion.gate_max}",
        "gate warm-up steps": str(fusion.gate_warmup_steps or "off"),
        "lr projector / adapter": f"{optim.lr_projector:g} / {optim.lr_adapter:g}",
        "batch x accumulation": f"{optim.batch_size} x {optim.accumulation}",
        "epochs": str(optim.epochs),
        "retention variant": config.retention.variant,
        "data": config.data.root.rpartition("/")[2],
        "projector parameters": f"{counts.projector:,}",
        "LoRA parameters": f"{counts.lora:,}",
        "norm and gate parameters": f"{counts.norm + counts.gates:,}",
        "trainable parameters": f"{counts.total:,}",
    }


def config_table(configs: Iterable[RunConfig]) -> str:
    """Return one column per config and one row per setting, aligned, without colour."""
    columns = [{"config": config.name, **describe_run(config)} for config in configs]
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    rows.insert(1, [""] * (len(columns) + 1))
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    filler = " " if any(cells) else "-"
    return "  ".join(cell.ljust(w, filler) for cell, w in zip(cells, widths, strict=True)).rstrip()


def main() -> int:
    """Print every config of the registry; return 2 and print the error when one is invalid."""
    try:
        from configs.model_configs import CONFIGS  # made, and thereby checked, by the import
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        return 2
    print(config_table(CONFIGS.values()))
    print(
        f"\n{len(CONFIGS)} configs, all valid. LoRA is counted for keys and values as wide as the "
        "hidden size;\ngrouped-query attention (SmolLM2, Qwen2, Mistral) has fewer."
    )
    return 0
