"""diagnose on real toy models: planted faults found, healthy ones left alone, nothing touched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes import PROBES
from probes.diagnosis import Diagnosis, assert_signal, diagnose
from probes.errors import PathError, ProbeError
from probes.findings import Settings, Severity
from probes.record import RecordLog
from probes.signal_path import SignalPath


def optimizer_of(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, **{"lr": 1e-3, "weight_decay": 0.0, **options})


def errors(diagnosis: Diagnosis) -> set[str]:
    return {f.code for f in diagnosis.findings if f.severity is Severity.ERROR}


@pytest.fixture
def look(toy: Any, toy_path: SignalPath, make_batch: Callable[..., Any]) -> Callable[..., Any]:
    """look(**options) -> the diagnosis of the toy model as it is now."""

    def run(optimizer: Any = None, batches: Any = None, **options: Any) -> Diagnosis:
        batches = [make_batch(seed=i) for i in range(2)] if batches is None else batches
        optimizer = optimizer_of(toy) if optimizer is None else optimizer
        return diagnose(toy, batches, toy_path, optimizer=optimizer, **options)

    return run


def test_healthy_toy_has_no_finding(toy: Any, look: Callable[..., Diagnosis]) -> None:
    toy.eval()
    diagnosis = look()
    assert diagnosis.findings == ()
    assert str(diagnosis.verdict) == "no broken link found"
    assert not diagnosis.failed and not diagnosis.not_measured
    assert set(diagnosis.records["probe"]) >= set(PROBES) - {"modules", "attention", "generation"}


def test_cold_starts_are_no_errors(make_safe: Any, safe_inputs: dict[str, Tensor]) -> None:
    for fusion in ({}, {"gate_init": 0.0}):
        model = make_safe(**fusion)
        with torch.no_grad():
            for name, parameter in model.fusion.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
        diagnosis = diagnose(model, [safe_inputs], optimizer=optimizer_of(model))
        assert errors(diagnosis) == set()


def test_untouched_llava_has_no_error(llava: Any, llava_inputs: dict[str, Tensor]) -> None:
    assert errors(diagnose(llava, [llava_inputs], signal="vision")) == set()


def test_frozen_gate_is_the_root(toy: Any, look: Callable[..., Diagnosis]) -> None:
    optimizer = optimizer_of(toy)
    with torch.no_grad():
        toy.adapter.gates["1"].zero_()
    toy.adapter.gates["1"].requires_grad_(False)
    diagnosis = look(optimizer)
    root = diagnosis.verdict.root
    assert root is not None and (root.code, root.component, root.layer) == ("SP203", "gate", 1)
    behind = {f.code: f.consequence_of for f in diagnosis.findings if f.layer == 1}
    assert behind["SP305"] == "SP203"


def test_projector_missing_in_the_optimizer(toy: Any, look: Callable[..., Diagnosis]) -> None:
    rest = [p for n, p in toy.named_parameters() if p.requires_grad and "projector" not in n]
    root = look(torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0)).verdict.root
    assert root is not None and (root.code, root.component) == ("SP308", "projector")


def test_cut_before_the_fusion(toy: Any, look: Callable[..., Diagnosis]) -> None:
    projector = toy.adapter.projector
    forward = projector.forward
    projector.forward = lambda sound: forward(sound).detach()
    root = look().verdict.root
    assert root is not None and (root.code, root.component) == ("SP301", "projector")


def test_gate_and_branch_both_zero(toy: Any, look: Callable[..., Diagnosis]) -> None:
    with torch.no_grad():
        toy.adapter.gates["3"].zero_()
        toy.adapter.cross["3"].out.weight.zero_()
        toy.adapter.cross["3"].out.bias.zero_()
    root = look().verdict.root
    assert root is not None and (root.code, root.layer) == ("SP211", 3)


def test_norm_after_the_scale_is_named(toy: Any, look: Callable[..., Diagnosis]) -> None:
    class Normed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.linear, self.scale = inner.linear, inner.scale
            self.output_norm = nn.LayerNorm(16)

        def forward(self, sound: Tensor) -> Tensor:
            tokens = torch.tanh(self.linear(sound)).unflatten(-1, (3, 16)) * self.scale
            return self.output_norm(tokens)

    toy.adapter.projector = Normed(toy.adapter.projector)
    found = [f for f in look().findings if f.code == "SP413"]
    assert found and "LayerNorm" in found[0].measured and "output_norm" in found[0].measured


def test_nan_in_one_branch(toy: Any, look: Callable[..., Diagnosis]) -> None:
    with torch.no_grad():
        toy.adapter.cross["3"].out.weight[0, 0] = torch.nan
    root = look().verdict.root
    assert root is not None and (root.code, root.component, root.layer) == ("SP102", "fusion", 3)


def test_same_clip_for_every_text(
    look: Callable[..., Diagnosis], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    batch = make_batch()
    batch["sound"] = batch["sound"][:1].expand(3, -1).clone()
    root = look(batches=[batch]).verdict.root
    assert root is not None and root.code == "SP609"


def test_all_labels_ignored(
    look: Callable[..., Diagnosis], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    batch = make_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    root = look(batches=[batch]).verdict.root
    assert root is not None and root.code == "SP601"


def test_the_model_is_left_as_found(toy: Any, look: Callable[..., Diagnosis]) -> None:
    toy.train()
    toy.lm.blocks[0].eval()
    optimizer = optimizer_of(toy)
    before = {n: t.clone() for n, t in toy.state_dict().items()}
    modes = {n: m.training for n, m in toy.named_modules()}
    random = torch.get_rng_state()
    look(optimizer)
    assert all(torch.equal(before[n], t) for n, t in toy.state_dict().items())
    assert modes == {n: m.training for n, m in toy.named_modules()}
    assert all(p.grad is None for p in toy.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.modules())
    assert not optimizer.state
    assert torch.equal(random, torch.get_rng_state())


def test_a_failing_model_is_an_error_not_a_crash(toy: Any, look: Callable[..., Diagnosis]) -> None:
    toy.adapter.cross["1"].forward = lambda *_, **__: 1 / 0
    diagnosis = look()
    assert "ZeroDivisionError" in diagnosis.not_measured["magnitude"]
    assert diagnosis.failed and "SP420" in errors(diagnosis)


def test_a_failing_probe_is_no_error_of_the_model(
    look: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_context: Any) -> None:
        raise ValueError("the probe asked for something strange")

    monkeypatch.setattr("probes.independence.measure", fail)
    diagnosis = look()
    found = [f for f in diagnosis.findings if f.code == "SP420"]
    assert [(f.component, f.severity) for f in found] == [("independence", Severity.WARNING)]
    assert not errors(diagnosis) and "strange" in diagnosis.not_measured["independence"]


def test_a_model_that_fails_in_training_only_is_an_error(
    toy: Any, look: Callable[..., Diagnosis]
) -> None:
    forward = toy.adapter.cross["1"].forward
    toy.adapter.cross["1"].forward = lambda *a, **k: (
        1 / 0 if toy.training else forward(*a, **k)  # type: ignore[return-value]
    )
    assert "SP420" in errors(look())


def test_an_interrupt_is_not_swallowed(toy: Any, look: Callable[..., Diagnosis]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    toy.adapter.cross["1"].forward = interrupt
    with pytest.raises(KeyboardInterrupt):
        look()


def test_without_batches_only_what_needs_none(toy: Any, toy_path: SignalPath) -> None:
    diagnosis = diagnose(toy, path=toy_path)
    assert "magnitude" in diagnosis.not_measured
    assert set(diagnosis.records["probe"]) >= {"parameters", "gates"}
    assert not diagnosis.failed


def test_wrong_input_is_an_error(toy: Any, toy_path: SignalPath) -> None:
    with pytest.raises(ProbeError, match="unknown probe 'magnitud'"):
        diagnose(toy, path=toy_path, probes=["magnitud"])
    with pytest.raises(PathError, match="describe it with a SignalPath"):
        diagnose(toy)


def test_save_and_read_again(look: Callable[..., Diagnosis], tmp_path: Path) -> None:
    diagnosis = look(probes=["parameters", "gates"])
    folder = diagnosis.save(tmp_path / "out", subject={"model": "toy"})
    data = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    assert (data["schema"], data["version"]) == ("safe-probe.diagnosis", 1)
    assert data["subject"] == {"model": "toy"}
    assert data["verdict"] == {
        "text": "no broken link found", "severity": None, "root": None, "failed": False
    }  # fmt: skip
    assert len(data["records"]) == len(RecordLog.read(folder / "records.jsonl"))
    header = (folder / "records.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "step,probe,component,layer,statistic,value,unit"


def test_notebook_shows_the_verdict(look: Callable[..., Diagnosis]) -> None:
    assert "no broken link found" in look(probes=["parameters"])._repr_html_()


def test_assert_signal(
    toy: Any, toy_path: SignalPath, make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    assert_signal(toy, make_batch(), toy_path)
    with torch.no_grad():
        toy.adapter.cross["3"].out.weight[0, 0] = torch.nan
    with pytest.raises(AssertionError, match=r"broken at fusion @ layer 3.*SP102"):
        assert_signal(toy, make_batch(), toy_path)
    assert_signal(
        toy, make_batch(), toy_path, ignore=["SP"], probes=["magnitude"]
    )  # everything is fine by request


def test_settings_are_used(look: Callable[..., Diagnosis], toy: Any) -> None:
    decaying = optimizer_of(toy, weight_decay=0.1)
    strict = Settings.from_dict({"fail-on": "warning"})
    assert not look(decaying, probes=["gates"]).failed
    assert look(decaying, probes=["gates"], settings=strict).failed
