"""Frozen audio encoders: a waveform in, an embedding of width 512 (or local features) out."""

from safe.models.audio_encoders.base import AudioEncoder, FrozenEncoder
from safe.models.audio_encoders.load import load_audio_encoder, load_features

__all__ = ["AudioEncoder", "FrozenEncoder", "load_audio_encoder", "load_features"]
