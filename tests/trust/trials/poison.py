"""Checkpoints whose sums are right and whose content must not be used."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from configs.errors import SafeError
from configs.overrides import dotted_fields
from configs.schema import RunConfig
from safe.checkpoint_manifest import MANIFEST_NAME, verify, write_manifest
from safe.training import run as runs
from safe.training import run_directory
from safe.training.launch import Launch
from safe.training.run_directory import read_config

Tensors = dict[str, torch.Tensor]
ADAPTER, LORA = "adapter/safe_adapter.safetensors", "adapter/adapter_model.safetensors"
OPTIMIZER, RNG = "optimizer.safetensors", "rng.safetensors"
RETENTION, HEADER, STATE = "retention.safetensors", "adapter/safe_config.json", "trainer_state.json"


def _nan(tensors: Tensors) -> None:
    next(t for t in tensors.values() if t.numel() > 1).view(-1)[1] = float("nan")


def _inf(tensors: Tensors) -> None:
    next(t for t in reversed(tensors.values()) if t.dim() > 1).view(-1)[0] = float("-inf")


def _cropped(tensors: Tensors) -> None:
    name = next(n for n, t in tensors.items() if t.dim() > 1)
    tensors[name] = tensors[name][:-1].clone()


def _lacking(tensors: Tensors) -> None:
    tensors.pop(max(tensors))


def _more(tensors: Tensors) -> None:
    tensors["more"] = torch.full((3,), float("nan"))


def _empty(tensors: Tensors) -> None:
    tensors.clear()


def _short_generator(tensors: Tensors) -> None:
    tensors["0.torch"] = tensors["0.torch"][:-9].clone()


def _set(*keys: str, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    change.__name__ = f"{'.'.join(keys)}={value!r}"
    return change


TENSORS = (
    *((file, change) for file in (ADAPTER, LORA, OPTIMIZER)
      for change in (_nan, _inf, _cropped, _lacking, _more)),
    (ADAPTER, _empty), (LORA, _empty),
    (RETENTION, _more), (RNG, _empty), (RNG, _short_generator),
)  # fmt: skip
DOCUMENTS = (
    (HEADER, _set("backbone", "identity", value="another")), (HEADER, _set("format", value=9)),
    (HEADER, _set("model", "projector", "scale", value=3.0)), (HEADER, _set("model", value=None)),
    (HEADER, _set("outer_gate", value={})), (HEADER, _set("outer_gate", "value", value=None)),
    (HEADER, _set("outer_gate", "value", value=float("nan"))),
    (STATE, _set("progress", value={})), (STATE, _set("progress", "position", value=None)),
    (STATE, _set("progress", "position", "window", value=99)),
    (STATE, _set("progress", "position", "step", value=-3)),
    (STATE, _set("progress", "position", "step", value="6")),
    (STATE, _set("optimizer", "groups", value=None)), (STATE, _set("optimizer", value={})),
    *((STATE, _set("optimizer", "groups", "projector", "hyperparameters", key, value=value))
      for key, value in (("weight_decay", float("nan")), ("weight_decay", "x"), ("lr", "x"),
                         ("betas", [float("nan"), 0.9]), ("eps", 1.0), ("lr", float("inf")))),
    (STATE, _set("rng", value=[])), (STATE, _set("rng", value=[None])),
    (STATE, _set("scheduler_step", value=None)), (STATE, _set("format_version", value=2)),
)  # fmt: skip


def resume(source: str, folder: str, rounds: int) -> dict[str, Any]:
    """Resume a run whose newest checkpoint holds what it must not."""
    _prepare_once(Path(source))
    answers: dict[str, list[str]] = {"accepted": [], "crashed": [], "refused": [], "offered": []}
    for round_ in range(rounds):
        for number, (file, change) in enumerate((*TENSORS, *DOCUMENTS)):
            run = Path(folder, f"{round_}-{number}")
            shutil.copytree(source, run, ignore=shutil.ignore_patterns("adapter.*", "report*"))
            _poison(run / "checkpoints" / "step-00000006", file, change)
            word, text = _resumed(run)
            what = f"{file} {change.__name__}"
            answers[word].append(what if word != "crashed" else f"{what}: {text}")
            if word == "refused" and "step-00000003" in text:
                answers["offered"].append(what)
            shutil.rmtree(run)
    return {
        "cases": rounds * (len(TENSORS) + len(DOCUMENTS)), "accepted": answers["accepted"],
        "crashed": answers["crashed"], "refused": len(answers["refused"]),
        "offered": len(answers["offered"]),
    }  # fmt: skip


def _prepare_once(run: Path) -> None:
    """Let every fork find the experiment made: only what it does with the checkpoint counts."""
    how = Launch(console=Console(file=io.StringIO()), device="cpu")
    config, accelerator = runs.engine(RunConfig.from_dict(read_config(run)), how)
    made = runs.prepare(config, accelerator, how.console, dotted_fields())
    runs.prepare = lambda *_, **__: made
    run_directory.describe_environment = dict
    runs._Training.finish = lambda *_: None  # type: ignore[method-assign,assignment]


def _poison(checkpoint: Path, file: str, change: Callable[[Any], None]) -> None:
    manifest, path = verify(checkpoint), checkpoint / file
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)
    (checkpoint / MANIFEST_NAME).unlink()
    write_manifest(checkpoint, manifest.name, manifest.metadata)


def _resumed(run: Path) -> tuple[str, str]:
    """What a fork says that goes on with the run: accepted, refused or crashed, and the text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        how = Launch(console=Console(file=io.StringIO()), output=run.parent, device="cpu")
        try:
            runs.resume(run, how)
            word = "accepted", ""
        except SafeError as error:
            word = "refused", str(error)
        except BaseException as error:
            word = "crashed", repr(error)
        os.write(writing, "\n".join(word).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        word, _, text = pipe.read().decode().partition("\n")
    os.waitpid(pid, 0)
    return word, text
