"""SmolLM2-135M-Instruct: from the fetched GGUF file to a safetensors folder, once."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe.fetch import FETCHABLE, fetched_path
from safe.models.hub import quiet_transformers
from safe.paths import cache_dir


def smollm2_folder() -> Path:
    """Return the folder with SmolLM2 as safetensors, made from the GGUF on the first call.

    Reading the GGUF takes 15-25 s each time, the copy a fraction of a second. Values are kept in
    float32, exactly as dequantised. The folder appears by one rename, so that two processes or
    an interruption leave either nothing or all of it.

    Raises:
        ModelError: SmolLM2 was not fetched.
    """
    source = fetched_path("smollm2")
    target = cache_dir() / "converted" / f"smollm2-{FETCHABLE['smollm2'].sha256[:16]}"
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=target.parent))
    try:
        _convert(next(source.glob("*.gguf")), work)
        try:
            os.rename(work, target)
        except OSError:  # another process was faster
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a transformers folder."""
    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        )
    # A GGUF-loaded model counts as quantised and refuses save_pretrained; a fresh one does not.
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    with quiet_transformers():
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
