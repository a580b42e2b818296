"""The public API of safe-probe: find out which link of the signal path is broken."""

from importlib.metadata import version

__version__ = version("safe-probe")
