"""The text that stands before every caption, per model family."""

from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from configs.errors import ModelError
from configs.json_files import read_json

PROMPT_FILE = "safe_prompt.json"
REQUEST = "Describe the sound in one sentence."
LLAVA_15 = f"USER: {REQUEST} ASSISTANT:"
GENERIC = "Describe the sound: "
SMOLLM2 = f"<|im_start|>user\n{REQUEST}<|im_end|>\n<|im_start|>assistant\n"
"""SmolLM2's chat template without its default system turn, which says nothing about sounds and
would make every sequence 21 tokens longer."""


def prompt_in(folder: Path) -> str | None:
    """Return the prompt that a model folder prescribes in ``safe_prompt.json``, or None.

    Raises:
        ModelError: the file is there but is not {"prompt": "..."}.
    """
    path = folder / PROMPT_FILE
    if not path.is_file():
        return None
    try:
        prompt = read_json(path)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{path}: expected {{"prompt": "..."}}') from error
    if not isinstance(prompt, str):
        raise ModelError(f"{path}: the prompt must be text, not {type(prompt).__name__}")
    return prompt


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a model folder, with the chat template that the folder has.

    Older folders of image-text models keep the template in ``chat_template.json``, which
    transformers reads for processors only.

    Raises:
        OSError, ValueError, KeyError: as transformers does.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    path = folder / "chat_template.json"
    if not tokenizer.chat_template and path.is_file():
        tokenizer.chat_template = read_json(path)["chat_template"]
    return tokenizer


def family_prompt(model_type: str, text_model_type: str, tokenizer: Any) -> str:
    """Return the prompt of a model family, ending right before the caption.

    LLaVA-1.5's own conversation form for LLaVA on Llama; the tokenizer's chat template where
    there is one (without a BOS text that the tokenizer adds itself); else plain words. Without a
    tokenizer (None) that of LLaVA on Llama is known all the same, and any other is "".
    """
    if (model_type, text_model_type) == ("llava", "llama"):
        return LLAVA_15
    if tokenizer is None:
        return ""
    return _from_template(tokenizer) or GENERIC


def _from_template(tokenizer: Any) -> str | None:
    """Return the request as the tokenizer's chat template words it, or None without a usable one.

    Templates of vision models expect a list of parts where those of text models expect text.
    """
    if not tokenizer.chat_template:
        return None
    for content in (REQUEST, [{"type": "text", "text": REQUEST}]):
        turn = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError):
            continue
        if REQUEST in text and "{" not in text:
            adds_bos = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
            return str(text.removeprefix(tokenizer.bos_token) if adds_bos else text)
    return None
