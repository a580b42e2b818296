"""Backbones, audio encoders and the adapter between them."""
