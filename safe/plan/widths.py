"""How wide the local features of an audio encoder are, told without loading it."""

from pathlib import Path

from safe.models.hub import EMBEDDED

_PUBLISHED = {"music_": 1024, "630k-": 768}
"""Beginning of the names of LAION's checkpoints to the width: HTSAT-base's, or HTSAT-tiny's."""


def local_width(name: str) -> tuple[int, str]:
    """Return the width of an encoder's local features, and where that stands.

    A checkpoint of laion-clap is opened only when its name is none of LAION's (seconds per GB); of
    a folder in the hub's format config.json is read.

    Args:
        name: as for ``load_audio_encoder``.

    Raises:
        ModelError: the file is no checkpoint of laion-clap.
    """
    kind, _, where = name.partition(":")
    path = Path(where).expanduser()
    if kind == "laion-clap":
        for start, width in _PUBLISHED.items():
            if path.name.startswith(start):
                return width, "by the checkpoint's name"
        if path.is_file():
            from safe.models.audio_encoders.laion import checkpoint_width

            return checkpoint_width(path), "by the checkpoint"
    folder = EMBEDDED / "clap" if name == "embedded" else path
    if (name == "embedded" or kind == "hf") and (folder / "config.json").is_file():
        from transformers import ClapAudioConfig

        return ClapAudioConfig.from_pretrained(folder).hidden_size, "by its config.json"
    return 768, "as most CLAPs', without looking"
