"""Frozen audio encoders: a waveform in, one embedding of width 512 out."""

from safe.models.audio_encoders.base import AudioEncoder, FrozenEncoder
from safe.models.audio_encoders.load import load_audio_encoder

__all__ = ["AudioEncoder", "FrozenEncoder", "load_audio_encoder"]
