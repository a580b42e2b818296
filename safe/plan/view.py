"""The plan as a person reads it: one screen of 80 columns."""

import textwrap

from configs.claims import TRAINING_HOURS
from safe.plan.run_plan import Fit, Plan

_WIDTH = 80


def plan_text(plan: Plan) -> str:
    """Return the plan as lines of at most 80 columns (names that are longer stay whole)."""
    lines = [f"plan of {plan.config.name}"]
    for note in plan.notes:
        lines += textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    lines += [*_sizes(plan), *_memory(plan), *_steps(plan)]
    unknown = not plan.exact_prompt and not plan.prompt
    prompt = f"prompt: {'unknown without the tokenizer' if unknown else repr(plan.prompt)}"
    return "\n".join([*lines, *_fits(plan), *textwrap.wrap(prompt, _WIDTH, subsequent_indent="  ")])


def _row(name: str, planned: str, about: str, stated: str = "") -> str:
    return f"{name:<22}{planned:>15}  {stated and f'stated {stated}':<17}{about}".rstrip()


def _sizes(plan: Plan) -> list[str]:
    count, stated = plan.parameters, plan.stated
    said = ["", "", ""]
    if stated is not None:
        numbers = (stated.trainable, stated.projector, stated.lora)
        said = [f"{number / 1e6:.4g}M" for number in numbers]
    return [
        _row("frozen parameters", f"{count['frozen']:,}", plan.config.model.dtype),
        _row("trainable parameters", f"{count['trainable']:,}", "float32", said[0]),
        _row("  projector", f"{count['projector']:,}", plan.config.model.projector.kind, said[1]),
        _row("  LoRA", f"{count['lora']:,}", f"rank {plan.config.model.fusion.lora_rank}", said[2]),
        _row("  gates", f"{count['gates']:,}", "one per fusion layer"),
    ]


def _memory(plan: Plan) -> list[str]:
    optim, model, stated = plan.config.optim, plan.config.model, plan.stated
    said = ""
    if stated is not None and stated.memory is not None:
        low, high = stated.memory
        said = f"{low / 1e9:.0f}-{high / 1e9:.0f} GB"
    how = {
        "weights": model.quantization or model.dtype,
        "gradients": "4 bytes x trainable",
        "optimizer": "8 bytes x trainable",
        "activations": "an estimate (see --json)",
        "retention": "8 bytes x trainable",
        "probes": "--probe-every 0: none",
    }
    about = f"micro-batch {optim.batch_size}"
    return [
        _row("memory", _gb(plan.total_bytes), about, said),
        *(_row(f"  {part.name}", _gb(part.bytes), how[part.name]) for part in plan.memory),
    ]


def _steps(plan: Plan) -> list[str]:
    optim, limit = plan.config.optim, plan.config.data.max_caption_tokens + 1
    prompt = f"{'' if plan.exact_prompt else '~'}{plan.prompt_tokens}"
    step = f"{optim.effective_batch} x ({prompt} prompt + {limit})"
    epochs = f"{plan.steps_per_epoch:,} per epoch x {optim.epochs}"
    if optim.max_steps is not None:
        epochs = f"{epochs}, at most {optim.max_steps:,}"
    hours = "{:.0f}-{:.0f} h".format(*TRAINING_HOURS) if plan.stated and plan.stated.memory else ""
    return [
        _row("captions to train on", f"{plan.examples.captions:,}", ""),
        f"  {plan.examples.source}",
        _row("tokens per step", f"<= {plan.tokens_per_step:,}", step),
        _row("steps", f"{plan.steps:,}", epochs),
        _row("hours, A100 at 40%", _hours(plan.hours), f"{plan.flops:.1e} FLOP", hours),
    ]


def _fits(plan: Plan) -> list[str]:
    if plan.device is None:
        return ["fits: no GPU here; give --gpu-memory GB to plan for one"]
    own, *others = plan.fits
    if own.batch_size is not None:
        return _fitting(f"{plan.device.name}:", own)
    lines = [
        f"{plan.device.name}: not even micro-batch 1 fits ({_gb(own.total)}, "
        f"{_gb(own.weights)} of it weights)"
    ]
    for fit in others:
        what = " and ".join(k if v is True else str(v) for k, v in fit.settings.items())
        if fit.batch_size is not None:
            lines += _fitting(f"  {what}, weights {_gb(fit.weights)}:", fit)
        else:
            lines.append(f"  {what}: does not fit either ({_gb(fit.total)})")
    return lines


def _fitting(what: str, fit: Fit) -> list[str]:
    first = f"{what} {fit.batch_size} x {fit.accumulation} fits ({_gb(fit.total)})"
    options = " ".join(f"--set\0{assignment}" for assignment in fit.assignments)
    wrapped = textwrap.wrap(options, _WIDTH - 4, break_on_hyphens=False)
    return [first, *("    " + line.replace("\0", " ") for line in wrapped)]


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _hours(hours: float) -> str:
    return f"<= {hours:.2g}" if hours >= 0.1 else "< 0.1"
