"""In a child process: opening and decoding files that may be hostile to the decoder."""

from dataclasses import asdict
from typing import Any

from configs.errors import DataError
from safe.child import Answer, serve
from safe.data import audio
from safe.data.problems import AudioProblem


def answer(question: dict[str, Any]) -> Answer:
    """Return the facts, or the seconds and the samples, or what is wrong."""
    try:
        if "inspect" in question:
            return asdict(audio.inspect(question["inspect"])), b""
        wave = audio.decode(*question["decode"], **question["how"])
        return {"seconds": wave.seconds}, wave.samples
    except AudioProblem as problem:
        return {"reason": problem.reason, "detail": problem.detail}, b""
    except DataError as error:
        return {"error": str(error)}, b""
    except (OSError, ValueError, RuntimeError) as error:  # what a library says of damaged bytes
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        return {"reason": "unreadable", "detail": detail}, b""


if __name__ == "__main__":
    serve(answer)
