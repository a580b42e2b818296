"""Measurements on any torch model: one probe per file, each returning records."""
