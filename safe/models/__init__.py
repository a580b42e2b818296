"""Backbones, audio encoders and the adapter between them."""

import logging

# PEFT imports bitsandbytes wherever it is installed. It would say at every start what else could be
# installed, and at every product of 8-bit weights that it rounds their input to float16.
for _name in ("backends.cpu.ops", "autograd._functions"):
    logging.getLogger(f"bitsandbytes.{_name}").setLevel(logging.ERROR)
