"""Pictures are shown to a LLaVA with a vision tower of its own: by safe-probe and by trainings."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from probes.record import RecordLog
from safe.models.safe_model import SAFEModel
from safe.training.launch import Launch
from safe.training.run import start
from safe_probe.cli import main
from safe_probe.subject import Request, build
from safe_probe.watch import ProbeWatch

pytestmark = pytest.mark.usefixtures("in_small_world")

EVERY = {("gate:zero", 0.0), ("signal:none", 0.0)}
HIDDEN, SIDE = 32, 32


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA in the hub's format: in a folder, its vision tower counts as trained."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    words = ["<s>", "</s>", "<pad>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    text = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=264, initializer_range=0.2, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=SIDE, patch_size=16, projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(1)
    config = LlavaConfig(
        text_config=text, vision_config=tower, image_token_index=3, image_seq_length=4
    )
    folder = tmp_path_factory.mktemp("models") / "seeing"
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def check(
    tiny_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., Any]:  # fmt: skip
    """check(backbone, *more) -> the JSON of `influence`, a part of `check`, on a fresh model."""
    monkeypatch.chdir(tmp_path)  # no settings

    def call(backbone: Path | str, *more: str) -> Any:
        small = ["--data", str(tiny_data), "--batch-size", "2", "--batches", "1", "--device", "cpu"]
        given = ["--config", "demo", "--backbone", str(backbone), *small, *more]
        main(["influence", "--json", *given])
        return json.loads(capsys.readouterr().out)

    return call


def parity(records: Any) -> set[tuple[str, float]]:
    """Control and share, of the comparison with pictures."""
    return {
        (r["component"], r["value"])
        for r in records
        if r["statistic"] == "pictures_parity_changed"
    }  # fmt: skip


def found(diagnosis: Any) -> list[str]:
    return [f["measured"] for f in diagnosis["findings"] if f["code"] == "SP410"]


def test_check_shows_pictures_to_a_model_that_sees(check: Any, seeing: Path) -> None:
    diagnosis = check(seeing)
    assert parity(diagnosis["records"]) == EVERY
    assert found(diagnosis) == [] and diagnosis["not_measured"] == {}


def test_check_finds_a_way_in_that_opens_beside_a_picture(
    check: Any, seeing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SAFEModel.forward

    def leaking(self: SAFEModel, *args: Any, **given: Any) -> Any:
        if given.get("audio") is not None and given.get("pixel_values") is not None:
            given["pixel_values"] = given["pixel_values"] + given["audio"].mean()
        return whole(self, *args, **given)

    monkeypatch.setattr(SAFEModel, "forward", leaking)
    (said,) = found(check(seeing))
    assert said.startswith("no signal, with pictures: ")


@pytest.mark.parametrize("signal", ["audio", "vision"])
def test_a_model_that_does_not_see_is_shown_none(check: Any, signal: str) -> None:
    assert parity(check("embedded", "--signal", signal)["records"]) == set()


def test_the_pictures_are_two_and_of_the_towers_size(seeing: Path, tiny_data: Path) -> None:
    request = Request(config="demo", data=str(tiny_data), backbone=str(seeing), device="cpu")
    pictures = build(request, Console(file=io.StringIO())).pictures
    assert pictures is not None and pictures.pixel_values is not None
    assert pictures.pixel_values.shape == (2, 3, SIDE, SIDE)
    assert ((pictures.input_ids == 3).sum(1) == (SIDE // 16) ** 2).all()
    assert len(pictures.audio) == 2 and (pictures.labels != -100).any(1).all()


def test_a_training_looks_at_both_ends(
    seeing: Path, tiny_data: Path, make_tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_tiny_config(tiny_data, model__backbone=str(seeing), optim__max_steps=1)
    launch = Launch(console=Console(file=io.StringIO()), output=tmp_path, name="run", device="cpu")
    start(config, (), launch, [ProbeWatch(1, ends=("influence",))])
    rows = [r.to_json() for r in RecordLog.read(tmp_path / "run" / "probes.jsonl")]
    for step in (0, 1):
        assert parity(r for r in rows if r["step"] == step) == EVERY
