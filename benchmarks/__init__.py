"""Measured proofs: each module here runs by one command and prints its figures."""
