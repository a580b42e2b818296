"""What can go wrong with a measurement through the user's input."""

from configs.errors import SafeError


class PathError(SafeError):
    """A signal path does not fit the model: a name matches nothing, or parts contradict."""


class ProbeError(SafeError):
    """A probe cannot measure what it was given; it says so instead of giving a wrong number."""


class RecordError(SafeError):
    """A file of records is not one, is damaged, or has another schema version."""
