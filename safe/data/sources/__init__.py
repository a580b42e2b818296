"""Data sets in the layouts in which they come, one file per format."""

from safe.data.sources.recognise import read_source
from safe.data.sources.source import Source

__all__ = ["Source", "read_source"]
