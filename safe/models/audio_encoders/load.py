"""From the name of an audio encoder to the encoder; each kind is imported when it is asked for."""

from pathlib import Path

import torch

from configs.errors import ModelError, did_you_mean
from safe.fetch import fetched_path
from safe.models.audio_encoders.base import WAYS_OUT, AudioEncoder, FrozenEncoder
from safe.models.audio_encoders.checkpoint import require_checkpoint
from safe.models.audio_encoders.local import Features, LocalFeatures
from safe.models.hub import EMBEDDED, check_shards, looks_like_folder, model_folder
from safe.plugins import ENCODERS


def load_features(name: str, features: Features, device: torch.device) -> AudioEncoder:
    """Load a frozen audio encoder that gives pooled embeddings, or local features, onto a device.

    Raises:
        ModelError: as :func:`load_audio_encoder`, or the encoder has no local features.
    """
    encoder = load_audio_encoder(name).to(device)
    return LocalFeatures(encoder) if features == "local" else encoder


def load_audio_encoder(name: str) -> FrozenEncoder:
    """Load a frozen audio encoder.

    Args:
        name: ``embedded`` (comes with the package), ``aisfx`` (after ``safe-train fetch aisfx``),
            ``laion-clap:CHECKPOINT`` (a .pt file of laion-clap, fusion or not), ``hf:NAME`` (a
            CLAP of transformers, folder or hub name), or what another package adds, with or
            without ``:WHERE`` (docs/extend.md).

    Raises:
        ModelError: another name, or the weights are missing or do not fit.
        PluginError: another package's encoder is none.
    """
    check_audio_encoder(name)
    kind, _, where = name.partition(":")
    if name == "aisfx":
        from safe.models.audio_encoders.aisfx import AiSFX

        return AiSFX()
    if name == "embedded":
        from safe.models.audio_encoders.clap import TransformersClap

        return TransformersClap(name, str(EMBEDDED / "clap"))
    if kind == "hf":
        from safe.models.audio_encoders.clap import TransformersClap

        return TransformersClap(name, where)
    if kind == "laion-clap":
        from safe.models.audio_encoders.laion import LaionClap

        return LaionClap(name, where)
    return _added(kind, name)


def check_audio_encoder(name: str) -> None:
    """Look for an audio encoder's files without opening them.

    A hub name passes, since it can be downloaded, and so does what another package adds.

    Raises:
        ModelError: an unknown name, no such file or folder, or aiSFX not fetched.
    """
    kind, _, where = name.partition(":")
    if name == "aisfx":
        fetched_path(name)
    elif kind == "hf" and where:
        if looks_like_folder(where):
            check_shards(name, model_folder(where, WAYS_OUT))
    elif kind == "laion-clap" and where:
        require_checkpoint(Path(where).expanduser())
    elif name == "laion-clap":
        raise ModelError(
            "audio encoder laion-clap needs a checkpoint: laion-clap:CHECKPOINT.pt (a file such as "
            "630k-audioset-best.pt), or use hf:laion/clap-htsat-unfused, aisfx or embedded"
        )
    elif name != "embedded" and kind not in ENCODERS.names():
        hint = did_you_mean(kind, ENCODERS.builtin + ENCODERS.names())
        known = ("embedded", "aisfx", "laion-clap:CHECKPOINT", "hf:FOLDER_OR_HUB_NAME")
        raise ModelError(
            f"unknown audio encoder {name!r}{hint}; known: {', '.join(known + ENCODERS.names())}"
        )


def _added(kind: str, name: str) -> FrozenEncoder:
    """The encoder that another package adds under ``kind``."""
    make = ENCODERS.load(kind)
    try:
        encoder = make(name)
    except Exception as error:
        raise ENCODERS.broken(kind, error) from error
    if not isinstance(encoder, FrozenEncoder):
        raise ENCODERS.broken(kind, f"a {type(encoder).__name__} is no FrozenEncoder")
    encoder.freeze()
    return encoder
