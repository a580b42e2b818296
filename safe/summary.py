"""The end of a run in the terminal: score, controls, floors, and what the score says."""

from rich.console import Console
from rich.table import Table

from safe.evaluation.evaluate import Evaluation
from safe.evaluation.metrics import Scores


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables and what the score alone says."""
    scores = evaluation.scores
    table = Table(
        title=f"{evaluation.split}: {scores.n_clips} clips, {scores.n_references} references, "
        f"tokenizer {scores.tokenizer}",
        title_justify="left",
    )
    table.add_column("captions from")
    table.add_column("CIDEr-D x100", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_row(*_row("the clip's own audio", scores), style="bold")
    for name, control in evaluation.controls.items():
        table.add_row(*_row(f"control: {name}", control))
    for name, floor in evaluation.floors.items():
        table.add_row(*_row(f"no model: {name}", floor))
    console.print(table)
    meteor = scores.meteor_reason  # says why there is none
    if scores.meteor is not None:
        meteor = f"METEOR {100 * scores.meteor:.1f}"
    console.print(
        f"BLEU-4 {_percent(scores.bleu_4)} · {meteor} · ROUGE-L {_percent(scores.rouge_l)} "
        f"· event-word recall {100 * evaluation.event_recall:.0f}% · distinct captions "
        f"{100 * evaluation.diversity.distinct:.0f}%",
        markup=False,
    )
    console.print(f"public scale: {evaluation.public_scale.reason}", markup=False)


def _row(name: str, scores: Scores) -> tuple[str, str, str]:
    low, high = scores.cider_interval
    return name, f"{scores.cider:.1f}", f"{low:.1f} to {high:.1f}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f}"
