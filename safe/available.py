"""What a run uses when a configuration's own pieces are not on this machine; said, never silent."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import EMBEDDED, SYNTHETIC, RunConfig
from safe.data.manifests import load_split
from safe.models.audio_encoders.load import check_audio_encoder
from safe.models.backbones import check_backbone, weights_available
from safe.models.hub import looks_like_folder
from safe.plugins import BACKBONES, ENCODERS


def use_what_is_here(config: RunConfig, explicit: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Replace pieces that are missing here by the embedded ones.

    Only pieces that the user did not ask for by name are replaced; what was asked for and is
    missing is an error where it is loaded.

    Args:
        config: the configuration asked for.
        explicit: dotted keys that the user set.

    Returns:
        The configuration to run and one line per replacement: what is used, how to get the other.
    """
    lines = []
    model, data = config.model, config.data
    if "model.backbone" not in explicit and not weights_available(model.backbone):
        lines.append(
            f"backbone {model.backbone} is not on this machine: using the embedded tiny one. "
            f"To use it: hf download {model.backbone}, or --backbone FOLDER; "
            "a real small one: safe-train fetch smollm2, then --backbone smollm2"
        )
        model = replace(model, backbone=EMBEDDED)
    if "model.audio_encoder" not in explicit and model.audio_encoder == "laion-clap":
        lines.append(
            "audio encoder laion-clap needs a checkpoint: using the embedded one, which knows the "
            "built-in synthetic sounds only. To use CLAP: --audio-encoder laion-clap:CHECKPOINT.pt "
            "or hf:laion/clap-htsat-unfused; a real small one: safe-train fetch aisfx, "
            "then --audio-encoder aisfx"
        )
        model = replace(model, audio_encoder=EMBEDDED)
    if "data.root" not in explicit and data.root != SYNTHETIC and not Path(data.root).is_dir():
        lines.append(
            f"data {data.root} is not there: using the built-in synthetic clips. "
            "To use your own: --data FOLDER in AudioCaps layout"
        )
        data = replace(data, root=SYNTHETIC)
    return replace(config, model=model, data=data), lines


def refuse_stand_ins(asked: RunConfig, here: RunConfig) -> None:
    """Raise ConfigError where `use_what_is_here` has made ``here`` of ``asked``, and they differ.

    For a job: nobody is there to read the note, and hours of it would be spent on a toy.
    """
    pieces = (
        ("--backbone", asked.model.backbone, here.model.backbone),
        ("--audio-encoder", asked.model.audio_encoder, here.model.audio_encoder),
        ("--data", asked.data.root, here.data.root),
    )
    missing = [piece for piece in pieces if piece[1] != piece[2]]
    if missing:
        raise ConfigError(
            f"missing here: {', '.join(f'{option} {name}' for option, name, _ in missing)}; a "
            "SLURM job does not train with embedded pieces in their place; name others by "
            "these options, or ask for the embedded ones: "
            + " ".join(f"{option} {name}" for option, _, name in missing)
        )


def check_pieces(config: RunConfig) -> None:
    """Look for everything a start needs, without loading it: manifests, files, folders.

    Raises:
        DataError: no data folder, no manifest of a split, or one with a bad row.
        ModelError: see `check_audio_encoder` and `check_backbone`.
    """
    data = config.data
    if data.root != SYNTHETIC:
        for split in (data.train_split, data.eval_split, data.test_split):
            load_split(data.root, split)
    check_audio_encoder(config.model.audio_encoder)
    check_backbone(config.model.backbone)


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration with every path absolute, so that a run resumes from any folder."""
    model, data = config.model, config.data
    kind, colon, file = model.audio_encoder.partition(":")
    known = kind in ENCODERS.builtin + ENCODERS.names()
    if known and colon and (Path(file).expanduser().exists() or looks_like_folder(file)):
        model = replace(model, audio_encoder=f"{kind}:{_absolute(file)}")
    meant_by_name = BACKBONES.builtin + BACKBONES.names()  # also where a folder is called so
    if model.backbone not in meant_by_name and looks_like_folder(model.backbone):
        model = replace(model, backbone=_absolute(model.backbone))
    if data.root != SYNTHETIC:
        data = replace(data, root=_absolute(data.root))
    return replace(config, model=model, data=data)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
