"""What leaves a decoder layer, whichever way its model family returns it."""

from typing import Any

from torch import Tensor


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states [B, T, H] in a decoder layer's output.

    transformers 5 layers return the bare tensor, so that ``output[0]`` would be the first batch
    item; older and foreign layers return a tuple or list that begins with it.

    Raises:
        TypeError: the output is neither, or does not begin with a tensor.
    """
    hidden = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(hidden, Tensor):
        raise TypeError(f"a decoder layer returned {type(output).__name__}, not hidden states")
    return hidden


def replace_hidden(output: Any, hidden: Tensor) -> Any:
    """Return ``output`` of a decoder layer with its hidden states [B, T, H] replaced.

    The container (none, tuple or list) and everything after the hidden states are kept; the
    given output is not changed.
    """
    if isinstance(output, Tensor):
        return hidden
    hidden_of(output)
    return type(output)((hidden, *output[1:]))
