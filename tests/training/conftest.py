"""The tiny backbones of tests/models serve the training tests, too."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[1] / "models" / "conftest.py"
_spec = spec_from_file_location("tiny_backbones", _SOURCE)
assert _spec is not None and _spec.loader is not None
_tiny = module_from_spec(_spec)
sys.modules["tiny_backbones"] = _tiny
_spec.loader.exec_module(_tiny)

tokenizer = _tiny.tokenizer
make_backbone = _tiny.make_backbone
make_model = _tiny.make_model
make_config = _tiny.make_config
text_batch = _tiny.text_batch
audio_batch = _tiny.audio_batch
