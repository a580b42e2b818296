"""What a run writes as it goes: metrics, captions, log lines, the final evaluation."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from typing_extensions import override

from configs.json_files import parse_json, whole_lines
from configs.overrides import flatten
from configs.schema import RunConfig
from safe.data.splits import Split
from safe.evaluation.evaluate import Evaluation
from safe.evaluation.metrics import Scores
from safe.training.callbacks import Callback, Step
from safe.training.checkpoint import step_name
from safe.training.durable import write_atomically
from safe.training.run_directory import RunDirectory
from safe.training.stage_a import StageA


class RunFiles(Callback):
    """Writes metrics, captions, log lines and trackers as the training goes."""

    def __init__(self, directory: RunDirectory, accelerator: Accelerator, track: str | None):
        self.directory, self.accelerator, self.track = directory, accelerator, track

    @override
    def on_train_begin(self, trainer: StageA) -> None:
        self.directory.log(f"training from step {trainer.position.step} of {trainer.total_steps}")

    @override
    def on_step_end(self, trainer: StageA, step: Step) -> None:
        row = step.to_row()
        self.directory.log_metrics(row)
        if step.skipped:
            self.directory.log(step.skip_notice())
        if self.track:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            self.accelerator.log(numbers, step=step.step)

    @override
    def on_evaluation(
        self, trainer: StageA, epoch: float, scores: Scores, captions: dict[str, str]
    ) -> None:
        low, high = scores.cider_interval
        row = {
            "kind": "evaluation",
            "step": trainer.position.step,
            "epoch": epoch,
            "cider": scores.cider,
            "cider_low": low,
            "cider_high": high,
            "clips": scores.n_clips,
            "tokenizer": scores.tokenizer,
            "skipped_steps": trainer.position.skipped,
        }
        # the captions first: a row says that the evaluation is complete
        name = f"{step_name(trainer.position.step)}.jsonl"
        write_captions(self.directory.captions / name, {"own": captions})
        self.directory.log_metrics(row)
        self.directory.log(f"epoch {epoch:g}: CIDEr {scores.cider:.1f} [{low:.1f}, {high:.1f}]")
        if self.track:
            self.accelerator.log({"cider": scores.cider}, step=trainer.position.step)

    @override
    def on_train_end(self, trainer: StageA) -> None:
        position = trainer.position
        self.directory.log(
            f"training complete at step {position.step}, {position.skipped} of them skipped"
        )


def evaluated_step(directory: RunDirectory) -> int:
    """The last step that metrics.jsonl has an evaluation of; 0 when there is none."""
    rows = map(parse_json, whole_lines(directory.metrics_path))
    return max((row["step"] for row in rows if row.get("kind") == "evaluation"), default=0)


def tracked_values(config: RunConfig) -> dict[str, bool | int | float | str]:
    """Every value of ``config`` by its dotted key, as trackers take it: null and lists as text."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flatten(config.to_dict())
    }


def write_evaluation(folder: Path, evaluation: Evaluation, split: Split) -> None:
    """evaluation.json, captions/final.jsonl and captions/references.jsonl in ``folder``."""
    (folder / "captions").mkdir(parents=True, exist_ok=True)
    write_captions(folder / "captions" / "final.jsonl", evaluation.captions)
    write_references(folder / "captions" / "references.jsonl", split)
    write_json(folder / "evaluation.json", evaluation.to_dict())


def write_captions(path: Path, captions: dict[str, dict[str, str]]) -> None:
    """One JSON line per clip: its id and its caption under each condition."""
    clips = list(next(iter(captions.values())))
    rows = [
        {"clip": clip, **{name: texts[clip] for name, texts in captions.items()}} for clip in clips
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_references(path: Path, split: Split) -> None:
    """One JSON line per clip: its id, what people wrote, and where its sound lies."""
    rows = zip(split.clip_ids, split.captions, split.paths, strict=True)
    lines = [
        {"clip": clip, "captions": captions, "audio": None if sound is None else str(sound)}
        for clip, captions, sound in rows
    ]
    write_atomically(path, "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))


def write_json(path: Path, value: Any) -> None:
    """``value`` as an indented JSON file, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
