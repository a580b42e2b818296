"""Planted faults: what safe-probe says about models that are broken on purpose, and healthy ones.

    python -m benchmarks.faults [--json FILE] [--only NAME]

A fault is a small patch to a healthy set-up, with its provenance and the finding that should name
it. The rules of safe-probe know nothing of this list.
"""
