"""METEOR 1.5 by pycocoevalcap's jar: a time limit, always closed, never sinks a whole score."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from safe.evaluation.java import JAVA, end, jar, java_available, kill

TIMEOUT_SECONDS = 900.0


def meteor(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> tuple[float | None, str | None]:
    """Corpus METEOR (0 to 1) of tokenized captions, or None and the reason why there is none.

    Same jar, flags and protocol as pycocoevalcap's `Meteor` (Denkowski & Lavie 2014). That class
    deadlocks in its destructor when the program dies; here a watchdog ends one that hangs.

    Args:
        references: id -> tokenized references.
        predictions: id -> tokenized prediction, same ids.
        timeout_seconds: the program is ended after this long.
    """
    if not java_available():
        return None, "METEOR needs Java, and `java -version` does not run here"
    path = jar("pycocoevalcap.meteor.meteor", "meteor-1.5.jar")
    command = [*JAVA, "-jar", "-Xmx2G", path.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=path.parent,  # the jar looks for its paraphrase table beside itself
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us: it would cost the score its METEOR
            )
        except OSError as error:
            return None, f"METEOR did not start: {error}"
        watchdog = threading.Timer(timeout_seconds, kill, (process,))
        try:
            watchdog.start()
            return _converse(process, references, predictions), None
        except (OSError, ValueError) as error:
            # The watchdog has no thread left once it has fired.
            late = f"no answer within {timeout_seconds:g} s; " if not watchdog.is_alive() else ""
            return None, f"METEOR failed: {late}{error}{_last_line(errors)}"
        finally:
            watchdog.cancel()
            end(process)


def _converse(
    process: subprocess.Popen[bytes],
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
) -> float:
    """One SCORE line per clip, then EVAL over all statistics; the last answer is the corpus's."""
    stats = []
    for clip_id, caption in predictions.items():
        fields = ["SCORE", *references[clip_id], caption]
        # The separator cannot be escaped, so it must not occur inside a caption.
        stats.append(_ask(process, " ||| ".join(field.replace("|||", " ") for field in fields)))
    _ask(process, " ||| ".join(["EVAL", *stats]))  # answers with the first clip's score
    answers = [_read(process) for _ in range(len(stats))]  # the other clips', then the corpus score
    score = float(answers[-1])
    if not 0 <= score <= 1:
        raise ValueError(f"its score is {answers[-1]}, which is no number from 0 to 1")
    return score


def _ask(process: subprocess.Popen[bytes], line: str) -> str:
    assert process.stdin is not None, "opened with a pipe"
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
    return _read(process)


def _read(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None, "opened with a pipe"
    answer = process.stdout.readline()
    if not answer:
        raise ValueError("the program ended before it had answered")
    return answer.decode().strip()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f" ({said[-1]})" if said else ""
