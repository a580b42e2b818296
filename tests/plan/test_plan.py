"""`safe-train plan`: numbers recomputed by other means, within one screen."""

import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile
from transformers import (
    ClapAudioConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from configs.claims import STATED
from configs.errors import ConfigError, ModelError
from configs.model_configs import get_config
from configs.overrides import apply_values
from configs.schema import DataConfig, FusionConfig, RunConfig
from probes.context import Context
from probes.diagnosis import diagnose
from probes.findings.facts import Facts
from probes.parameters import measure
from safe import cli
from safe.models.backbones import Backbone
from safe.models.prompts import LLAVA_15
from safe.models.safe_model import IGNORED, SAFEModel
from safe.plan import plan_run, plan_text, training_memory
from safe.plan.clips import count_examples
from safe.plan.memory import CUDA_CONTEXT, USABLE, MemoryPart, quantized_bytes
from safe.plan.run_plan import Plan
from safe.training.batches import epoch_windows
from safe_probe.sizes import memory_plan, sized_model


@pytest.fixture(scope="module")
def phase1() -> Plan:
    return plan_run("phase1", gpu_memory=80)


def test_phase1_beside_what_was_stated(phase1: Plan) -> None:
    count = phase1.parameters
    assert count["frozen"] == 13_351_494_656
    assert count["projector"] == 168_461_312 + 2 * 512
    assert (count["lora"], count["gates"]) == (10_485_760, 4)
    assert count["trainable"] == count["projector"] + count["lora"] + count["gates"]
    parts = {part.name: part.bytes for part in phase1.memory}
    assert parts["weights"] == 2 * count["frozen"] + 4 * count["trainable"]
    assert phase1.tokens_per_step == 128 * (24 + 49)
    assert phase1.stated == STATED["phase1"]
    text = plan_text(phase1)
    for part in ("stated 380M", "stated 38-42 GB", "stated 12-18 h", "178,948,100", "49,838"):
        assert part in text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80


CONFIGS = {  # bottleneck, tokens, rank, layers, epochs; micro-batches 4 x 32 or 8 x 16
    "phase1": (1024, 32, 64, 4, 20),
    "full": (1024, 16, 8, 3, 20),
    "phase2": (None, 32, 64, 4, 50),
}
SIZES = {"13b": (5120, 13824, 40), "7b": (4096, 11008, 32)}
TOWER, TOWER_LINEAR = 303_507_456, 24 * (4 * 1024**2 + 2 * 1024 * 4096)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("quantization", "memory"), [(None, 24), (None, 80), ("8bit", 40), ("4bit", 24)]
)
def test_every_number_by_hand(name: str, size: str, quantization: str | None, memory: int) -> None:
    """From the papers' sizes alone: width, inner width and layers of the decoder, CLIP's tower."""
    width, inner, layers = SIZES[size]
    bottleneck, tokens, rank, fusions, epochs = CONFIGS[name]
    rank = math.floor(rank * width / 5120 + 0.5)
    words = [] if quantization is None else [f"model.quantization={quantization}"]
    plan = plan_run(name, words, backbone=f"llava-hf/llava-1.5-{size}-hf", gpu_memory=memory)
    # parameters
    head = 32_064 * width
    matrices = layers * (4 * width**2 + 3 * width * inner)
    bridge = 1024 * width + width**2
    frozen = TOWER + matrices + layers * 2 * width + width + 2 * head + bridge + 2 * width
    outputs = tokens * width
    projector = 2 * 512 + (
        512 * outputs + outputs
        if bottleneck is None
        else 512 * bottleneck + bottleneck + bottleneck * outputs + outputs
    )
    lora = fusions * 4 * 2 * width * rank
    trainable = projector + lora + fusions
    assert plan.parameters == {
        "frozen": frozen, "projector": projector, "lora": lora, "gates": fusions,
        "trainable": trainable,
    }  # fmt: skip
    # bytes of the weights
    linear = matrices + bridge + TOWER_LINEAR
    count = 7 * layers + 2 + 24 * 6
    rows = layers * (5 * width + 2 * inner) + 2 * width + 24 * (5 * 1024 + 4096)
    own = {
        None: 2 * linear,
        "8bit": linear + 4 * rows,
        "4bit": linear // 2 + linear // 16 + 64 * count,
    }[quantization]
    parts = {part.name: part.bytes for part in plan.memory}
    assert parts["weights"] == own + 2 * (frozen - linear) + 4 * trainable
    assert (parts["gradients"], parts["optimizer"]) == (4 * trainable, 8 * trainable)
    # steps and tokens
    per_epoch = math.ceil(math.ceil(49_838 / plan.config.optim.batch_size)
                          / plan.config.optim.accumulation)  # fmt: skip
    assert plan.steps == epochs * per_epoch == plan.steps_per_epoch * epochs
    assert plan.tokens_per_step == 128 * (24 + 49)
    # activations, of captions or of the pictures of soft retention, and what fits
    first = min(plan.config.model.fusion.layers)
    layer = 8 * width + (6 if quantization == "8bit" else 4) * width * 2 + 3 * inner * 2
    token = (layers - 1 - first) * layer + fusions * 14 * width
    pictures = 2 * (576 + 73) if name == "full" else 0

    def total(clips: int) -> int:
        kept = max(73 * clips, pictures) * token + 49 * clips * 32_064 * 10
        probes = max(4 * trainable, 16 * trainable - kept)
        return parts["weights"] + 12 * trainable + kept + probes

    assert plan.total_bytes == total(plan.config.optim.batch_size)
    room = 0.95 * memory * 1e9 - 1e9
    best = max((n for n in (1, 2, 4, 8, 16, 32, 64, 128) if total(n) <= room), default=None)
    assert plan.fits[0].batch_size == best
    assert (plan.stated is not None) == (size == "13b" and not words and name != "phase2")


def test_stated_numbers_stand_beside_the_configuration_they_are_of_only() -> None:
    assert plan_run("phase1", ["optim.batch_size=8"]).stated is None
    assert plan_run("phase1", backbone="embedded").stated is None
    assert "stated" not in plan_text(plan_run("demo"))


def test_steps_are_those_of_the_training_loop(phase1: Plan) -> None:
    lengths = torch.ones(49_838).numpy()
    assert phase1.steps_per_epoch == len(epoch_windows(lengths, 4, 32, seed=0, epoch=0))
    assert phase1.steps == 20 * phase1.steps_per_epoch
    assert plan_run("phase1", ["optim.max_steps=7"], gpu_memory=80).steps == 7


def test_flops_by_hand(phase1: Plan) -> None:
    layer = 4 * 5120**2 + 3 * 5120 * 13824
    per_token = 2 * layer * (40 + 31)  # through all, and back to the first fusion at 8
    assert phase1.flops == phase1.steps * phase1.tokens_per_step * per_token


@pytest.mark.parametrize("memory", [6, 17, 20, 24, 31, 32, 40, 48, 80, 141])
def test_the_micro_batch_is_the_largest_that_fits(memory: int) -> None:
    """By trying every one anew, each as a plan of its own."""
    room = USABLE * memory * 1e9 - CUDA_CONTEXT
    plan = plan_run("phase1", gpu_memory=memory)
    for fit in plan.fits:
        own = apply_values(plan.config, {f"model.{k}": v for k, v in fit.settings.items()})
        planned = _planned(own)
        sizes = [d for d in (1, 2, 4, 8, 16, 32, 64, 128) if planned(d) <= room]
        assert fit.batch_size == (max(sizes) if sizes else None)
        if fit.batch_size and fit.accumulation:
            assert fit.batch_size * fit.accumulation == 128
            assert fit.total == planned(fit.batch_size)
            asked = plan_run("phase1", fit.assignments, gpu_memory=memory)
            assert asked.total_bytes == fit.total <= room
            assert asked.config.optim.effective_batch == 128
    assert (plan.fits[0].batch_size is None) == (len(plan.fits) > 1)
    lines = plan_text(plan).splitlines()
    assert max(map(len, lines)) <= 80


def bytes_of(parts: Iterable[MemoryPart], name: str) -> int:
    (found,) = [part.bytes for part in parts if part.name == name]
    return found


def _planned(config: RunConfig) -> Callable[[int], int]:
    """Micro-batch to the bytes of a step, from the parts of micro-batch 1."""
    words = [f"model.quantization={config.model.quantization or 'null'}"]
    words += [f"model.gradient_checkpointing={str(config.model.gradient_checkpointing).lower()}"]
    plan = plan_run("phase1", [*words, "optim.batch_size=1", "optim.accumulation=1"])
    one, trainable = bytes_of(plan.memory, "activations"), plan.parameters["trainable"]
    rest = plan.total_bytes - one - bytes_of(plan.memory, "probes")
    return lambda batch: rest + max(batch * one + 4 * trainable, 16 * trainable)


def _small(*, checkpointing: bool = False, tokens: int = 4) -> tuple[SAFEModel, RunConfig]:
    """A LLaVA of 12 layers in bfloat16 that hears, and micro-batches of 6 clips."""
    text = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=512,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    backbone = Backbone(llava.to(torch.bfloat16), None, "small", "", "small")
    config = get_config("demo")
    fusion = FusionConfig(layers=(2, 6), lora_rank=4, gate_init=0.3, gate_max=1.0)
    model = replace(
        config.model, hidden_size=256, num_layers=12, dtype="bfloat16", fusion=fusion,
        gradient_checkpointing=checkpointing,
        projector=replace(config.model.projector, num_tokens=tokens),
    )  # fmt: skip
    config = replace(
        config, model=model, optim=replace(config.optim, batch_size=6), data=DataConfig(root="x")
    )
    return SAFEModel(backbone, model).train(), config


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(checkpointing: bool) -> None:
    """Bytes of everything that autograd saved in a real step, each storage once.

    Measured 0.995 to 1.001 of the plan for hidden sizes 256 and 512, 12 and 20 layers, 2 and 4
    fusions in bfloat16; 0.97 with checkpointing, whose one recomputed layer is added by hand.
    Without its terms for the fusion the plan would be 5 to 10% too small.
    """
    safe, config = _small(checkpointing=checkpointing)
    ids = torch.randint(5, 500, (6, 24 + 49))
    labels = ids.clone()
    labels[:, :24] = IGNORED
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes back
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in safe.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        safe(ids, torch.ones_like(ids), torch.randn(6, 512), labels)
    measured = sum(size for place, (size, _) in kept.items() if place not in weights)
    if checkpointing:
        measured += ids.numel() * (8 * 256 + 4 * 256 * 2 + 3 * 688 * 2)
    planned = bytes_of(training_memory(0, 0, safe.backbone, config), "activations")
    assert planned == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(
    ("clips", "tokens", "decides"), [(1, 64, "trial step"), (6, 4, "backward")]
)
def test_the_probes_of_a_training_need_what_is_planned(
    clips: int, tokens: int, decides: str
) -> None:
    """By torch's own log of what is allocated, of the ledger of gradients, which needs most.

    Measured 0.995 of the plan both where the trial step decides and where the activations do. With
    the products of the trial step in float64, as they once were, it would be 1.6 times the plan.
    """
    safe, config = _small(tokens=tokens)
    config = replace(config, optim=replace(config.optim, batch_size=clips))
    trainables = [p for p in safe.parameters() if p.requires_grad]
    optimizer = AdamW(trainables, fused=True)
    ids = torch.randint(5, 500, (clips, 24 + 49))
    labels = ids.clone()
    labels[:, :24] = IGNORED
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "audio": torch.randn(clips, 512), "labels": labels,
    }  # fmt: skip

    def look() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return diagnose(safe, [batch] * 2, optimizer=optimizer, probes=["gradflow"], step=1)

    safe(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocations:
        assert not look().not_measured
    events = [e for e in allocations.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    trainable = sum(p.numel() for p in trainables)
    peak = max(held)
    parts = training_memory(0, trainable, safe.backbone, config)
    planned = sum(bytes_of(parts, name) for name in ("gradients", "activations", "probes"))
    assert (planned > 20 * trainable) == (decides == "backward")
    assert peak == pytest.approx(planned, rel=0.03)


def test_retention_has_its_own_step_and_its_own_tensors(tmp_path: Path) -> None:
    """Two pictures of 576 tokens are longer than eight captions; language models see none."""

    def parts(retention: str, **options: Any) -> dict[str, Any]:
        plan = plan_run("full", [f"retention.variant={retention}"], **options)
        return {part.name: part for part in plan.memory} | {"trainable": plan.parameters}

    bare, soft, full = map(parts, ("no_retention", "soft_retention", "full_retention"))
    assert bare["activations"].formula.startswith(f"estimate: {8 * (24 + 49)} tokens")
    assert soft["activations"].formula.startswith(f"estimate: {2 * (576 + 24 + 49)} tokens")
    assert "retention" not in soft and full["activations"] == soft["activations"]
    assert full["retention"].bytes == 8 * full["trainable"]["trainable"]
    LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=20, num_attention_heads=4,
        vocab_size=100, architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    deaf, blind = (parts(v, backbone=str(tmp_path)) for v in ("no_retention", "soft_retention"))
    assert blind["activations"] == deaf["activations"]


def test_quantised_bytes_by_hand() -> None:
    text = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=100, tie_word_embeddings=False,
    )  # fmt: skip
    from transformers import LlamaForCausalLM

    lm = LlamaForCausalLM(text).to(torch.bfloat16)
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 96)
    rest = 2 * 100 * 64 + 5 * 64  # embeddings, head, norms
    rows = 2 * (4 * 64 + 2 * 96 + 64)
    assert quantized_bytes(lm, "8bit") == linear + 4 * rows + 2 * rest
    assert quantized_bytes(lm, "4bit") == linear // 2 + 4 * linear // 64 + 14 * 16 * 4 + 2 * rest


def test_probe_and_plan_share_the_arithmetic() -> None:
    from rich.console import Console

    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        model, config = sized_model("phase1", [], None, Console(file=nowhere))
    probe = memory_plan(model, config, Facts(measure(Context.of(model))))
    assert list(plan_run("phase1").memory) == probe


def test_a_folder_needs_its_config_only(tmp_path: Path) -> None:
    text = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=10, num_attention_heads=4,
        vocab_size=100, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    text.save_pretrained(tmp_path)
    plan = plan_run("phase1", backbone=str(tmp_path))
    assert not plan.exact_prompt and plan.prompt == ""
    assert "prompt: unknown without the tokenizer" in plan_text(plan)
    told = plan_run("phase1", ["model.prompt=Sound:"], backbone=str(tmp_path))
    assert "prompt: 'Sound:'" in plan_text(told)
    tower = plan.parameters["frozen"] - 10 * (4 * 64**2 + 3 * 64 * 96 + 2 * 64) - 64 - 2 * 6400
    assert 0 < tower < 50_000  # the tiny tower that completes the class


def test_the_prompt_of_llava_15_is_known_without_its_tokenizer(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    LlavaConfig(
        text_config=LlamaConfig(**sizes, num_hidden_layers=10),
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=2),
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(tmp_path)  # fmt: skip
    plan = plan_run("phase1", backbone=str(tmp_path))
    assert plan.prompt == LLAVA_15 and not plan.exact_prompt
    assert f"prompt: {LLAVA_15!r}" in plan_text(plan)


def save_laion(path: Path, width: int) -> str:
    norm = {"audio_branch.norm.weight": torch.ones(width)}
    torch.save({"state_dict": norm}, path)
    return f"laion-clap:{path}"


def test_local_features_are_as_wide_as_the_name_or_the_file_says(tmp_path: Path) -> None:
    ClapAudioConfig(hidden_size=256).save_pretrained(tmp_path)
    wide = save_laion(tmp_path / "mine.pt", 1024)
    for encoder, width, source in (
        ("laion-clap:music_speech_epoch_15_esc_89.25.pt", 1024, "by the checkpoint's name"),
        ("laion-clap:630k-audioset-fusion-best.pt", 768, "by the checkpoint's name"),
        (wide, 1024, "by the checkpoint"),
        ("laion-clap:not-here.pt", 768, "without looking"),
        ("hf:laion/clap-htsat-unfused", 768, "without looking"),
        (f"hf:{tmp_path}", 256, "by its config.json"),
    ):
        words = ["model.projector.kind=resampler", "model.audio_features=local"]
        plan = plan_run("phase1", [*words, f"model.audio_encoder={encoder}"])
        assert plan.config.model.audio_dim == width, encoder
        (note,) = [note for note in plan.notes if "model.audio_dim" in note]
        assert source in note and f"-> {width}:" in note
    save_laion(tmp_path / "mine.pt", 96)
    with pytest.raises(ModelError, match=r"mine\.pt has no audio branch of HTSAT-tiny"):
        plan_run("phase1", [*words, f"model.audio_encoder={wide}"])


def test_number_of_clips(tmp_path: Path, shared: Path, tiny_data: Path) -> None:
    assert count_examples(DataConfig(root="synthetic")).captions == 1280
    assert count_examples(DataConfig(root=str(tmp_path / "no"))).captions == 49_838
    assert count_examples(DataConfig(root=str(tiny_data))) == (
        22,
        "22 of 22 clips have an audio file",
    )
    count, source = count_examples(DataConfig(root=str(shared / "data" / "audiocaps")))
    assert count == 49_838 and "none of its 49,838 clips has an audio file" in source


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gpu-memory 0: must be above 0 GB"):
        plan_run("phase1", gpu_memory=0)
    with pytest.raises(ConfigError, match="--gpu-memory nan"):
        plan_run("phase1", gpu_memory=math.nan)
    with pytest.raises(ModelError, match="it needs a config.json"):
        plan_run("phase1", backbone=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ModelError, match="not a backbone that can be planned"):
        plan_run("phase1", backbone=str(tmp_path))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "demo", "--gpu-memory", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["memory_total"] == sum(part["bytes"] for part in plan["memory"])
    assert plan["fits"][0]["set"] == ["optim.batch_size=16", "optim.accumulation=1"]
    assert plan["prompt_tokens_counted"] and plan["steps"] == 480
    assert cli.main(["plan", "phas1"]) == 2
    assert "did you mean 'phase1'" in capsys.readouterr().err
