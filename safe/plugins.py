"""What other packages can add to the trainer, and the names that are taken."""

from configs.plugins import ExtensionPoint

BACKBONES = ExtensionPoint("safe_probe.backbones", "backbone", ("embedded", "smollm2"))
"""A function without arguments that returns a folder in the hub's format."""
ENCODERS = ExtensionPoint(
    "safe_probe.audio_encoders", "audio encoder", ("embedded", "aisfx", "laion-clap", "hf")
)
"""A subclass of ``FrozenEncoder``, or a function, that is called with the whole name."""
DATASETS = ExtensionPoint("safe_probe.datasets", "data set format")
"""A ``safe.data.sources.source.Format``; asked only about folders that no built-in one claims."""
