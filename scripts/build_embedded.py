"""Build the weights that come with the package: a small LLaVA-class model and a small CLAP encoder.

    OMP_NUM_THREADS=1 python scripts/build_embedded.py --captions train.csv

Nothing is downloaded. One thread, fixed seeds and deterministic kernels: the same command on the
same kind of processor with the same versions gives the same bytes.
"""

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("backbone", "clap")
LIMIT_BYTES = 20_000_000
STEPS = {"backbone": 4000, "encoder": 2500}
CLIPS = 5000
START = time.monotonic()


def say(line: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - START:5.0f} s] {line}", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train the embedded backbone and audio encoder and write them with a model "
        "card. About 20 minutes on one core."
    )
    parser.add_argument(
        "--captions",
        type=Path,
        nargs="+",
        default=[],
        metavar="CSV",
        help="manifests with a `caption` column whose text teaches the language model; training "
        "splits only. Default: captions of the built-in clips alone.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "safe" / "embedded",
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help=f"training steps of both models, for a quick trial (default: {STEPS['backbone']} for "
        f"the backbone, {STEPS['encoder']} for the encoder)",
    )
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    for manifest in options.captions:
        if not manifest.is_file():
            parser.error(f"--captions: no such file: {manifest}")
    return options


def checksums(output: Path) -> dict[str, tuple[int, str]]:
    """Return bytes and SHA-256 of every built file, and make each readable for all."""
    found = {}
    for path in sorted(path for part in PARTS for path in (output / part).iterdir()):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(output).as_posix()] = (path.stat().st_size, digest)
    return found


def main(arguments: Sequence[str]) -> int:
    """Build both models; returns the exit status."""
    options = parse(arguments)
    # Imported late, so that --help answers at once.
    import torch
    from embedded_backbone import build_backbone, learning_rate
    from embedded_card import model_card
    from embedded_encoder import build_encoder

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    output: Path = options.output
    steps = STEPS if options.steps is None else dict.fromkeys(STEPS, options.steps)
    clips = CLIPS if options.steps is None else min(CLIPS, 100 * options.steps)
    for part in PARTS:
        shutil.rmtree(output / part, ignore_errors=True)
    backbone = build_backbone(options.captions, output / "backbone", steps["backbone"], say)
    say(f"backbone: loss on unseen built-in captions {backbone.synthetic_loss:.3f} nats/token")
    encoder = build_encoder(output / "clap", steps["encoder"], clips, learning_rate, say)
    say(f"encoder: held-out event recall {encoder.event_recall:.3f}")
    sums = checksums(output)
    size = sum(size for size, _ in sums.values())
    if size > LIMIT_BYTES:
        raise SystemExit(f"{size} bytes are more than the {LIMIT_BYTES} that may be shipped")
    command = [
        "OMP_NUM_THREADS=1 python scripts/build_embedded.py",
        *(Path(word).name if Path(word).is_file() else word for word in map(str, arguments)),
    ]
    card = model_card(" ".join(command), options.captions, backbone, encoder, sums)
    (output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    say(f"{size / 1e6:.1f} MB in {output}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
