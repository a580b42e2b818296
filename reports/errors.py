"""Errors of the reports."""

from configs.errors import SafeError


class ReportError(SafeError):
    """There is nothing to report on, or it cannot be read."""
