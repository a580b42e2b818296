"""Clips, their sound, and what the frozen encoder made of it."""

from safe.data.audio import AudioFacts, Waveform, decode, inspect
from safe.data.cache import EmbeddingCache
from safe.data.check import check_root, usable
from safe.data.encoding import Encoder
from safe.data.manifests import Clip, load_split, write_manifest
from safe.data.overlap import assert_no_overlap
from safe.data.problems import AudioProblem, Problem
from safe.data.report import DataReport

__all__ = [
    "AudioFacts",
    "AudioProblem",
    "Clip",
    "DataReport",
    "EmbeddingCache",
    "Encoder",
    "Problem",
    "Waveform",
    "assert_no_overlap",
    "check_root",
    "decode",
    "inspect",
    "load_split",
    "usable",
    "write_manifest",
]
