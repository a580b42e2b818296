"""Scoring of captions: tokens, metrics, intervals, and the floors to read a score against."""
