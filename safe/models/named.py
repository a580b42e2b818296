"""Backbones that have a name of their own, instead of a folder's or the hub's."""

from pathlib import Path

from safe.models.hub import EMBEDDED, check_shards, model_folder
from safe.plugins import BACKBONES


def named_folder(name: str) -> Path | None:
    """Return the folder of ``embedded``, ``smollm2`` or a package's backbone; None for others.

    Raises:
        ModelError: SmolLM2 was not fetched, or the package is damaged.
        PluginError: another package's backbone is no model folder.
    """
    if name == "smollm2":
        from safe.models.smollm2 import smollm2_folder

        return smollm2_folder()
    if name == "embedded":
        return model_folder(str(EMBEDDED / "backbone"), "reinstall safe-probe")
    if name not in BACKBONES.names():
        return None
    make = BACKBONES.load(name)
    try:
        folder = Path(make())
        if not (folder / "config.json").is_file():
            raise BACKBONES.broken(name, f"{folder} has no config.json")
        check_shards(name, folder)
    except Exception as error:
        raise BACKBONES.broken(name, error) from error
    return folder
