"""Training goes on from a saved state as if it had never stopped; another state is refused."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.errors import CheckpointError
from safe.checkpoint_manifest import as_json
from safe.training import rng as rng_module
from safe.training.rng import RngState, capture_rng, restore_rng
from safe.training.state import load_training_state, read_progress, save_training_state

PROGRESS = {
    "epoch": 2,
    "position": 7,
    "step": 31,
    "phase": 1,
    "best": 0.1 + 0.2,
    "bad_steps": 0,
    "warmup": {"step": 3},
    "sampler_seed": None,
}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(6, 5)
        self.adapter = nn.Linear(5, 3, bias=False)
        self.gate = nn.Parameter(torch.tensor(0.3))
        self.idle = nn.Parameter(torch.ones(2))  # never gets a gradient, so never a state

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.adapter(torch.tanh(self.projector(x)))


def make_optimizer(model: Tiny, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [
            {"name": "projector", "params": list(model.projector.parameters()), "lr": 1e-2},
            {
                "name": "adapter",
                "params": [model.adapter.weight, model.gate, model.idle],
                "lr": 3e-3,
                "weight_decay": 0.1,
                "betas": (0.8, 0.99),
            },
        ],
        **options,
    )


def train(model: Tiny, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take steps whose data and noise come from all three generators."""
    for _ in range(steps):
        x = torch.randn(4, 6) + float(np.random.normal()) + random.gauss(0, 1)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9


def save(folder: Path, model: Tiny, optimizer: torch.optim.Optimizer, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    save_training_state(
        folder,
        optimizer=optimizer,
        named_parameters=model.named_parameters(),
        scheduler_step=5,
        progress=PROGRESS,
        **options,
    )


def load(folder: Path, model: Tiny, optimizer: torch.optim.Optimizer, **options: Any) -> Any:
    return load_training_state(
        folder, optimizer=optimizer, named_parameters=model.named_parameters(), **options
    )


def seed() -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        value
        for group in optimizer.param_groups
        for parameter in group["params"]
        for value in (parameter.detach(), *optimizer.state.get(parameter, {}).values())
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"foreach": True},
        {"foreach": False},
        {"fused": False},
        {"fused": True},
        {"maximize": True},
    ],
    ids=str,
)
def test_training_goes_on_bit_exactly(tmp_path: Path, options: dict[str, bool]) -> None:
    seed()
    model = Tiny()
    optimizer = make_optimizer(model, **options)
    train(model, optimizer, 3)
    random.gauss(0, 1)  # leaves a second value waiting inside the generator
    np.random.normal()
    save(tmp_path, model, optimizer)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, optimizer, 4)

    random.seed(9)
    resumed = Tiny()
    resumed.load_state_dict(weights)
    again = make_optimizer(resumed, **options)
    train_state = load(tmp_path, resumed, again)
    train(resumed, again, 4)

    assert train_state.scheduler_step == 5 and train_state.progress == PROGRESS
    assert train_state.notes == () and read_progress(tmp_path) == PROGRESS
    expected, found = everything(optimizer), everything(again)
    assert len(expected) == len(found) == 5 + 3 * 4
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ] == [
        {key: value for key, value in group.items() if key != "params"}
        for group in again.param_groups
    ]


def test_all_generators_return_and_saving_moves_none(tmp_path: Path) -> None:
    model = Tiny()
    optimizer = make_optimizer(model)

    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            float(np.random.normal()),
            float(np.random.rand()),
            float(torch.rand(())),
            float(torch.randn(())),
        ]

    seed()
    draw()
    save(tmp_path, model, optimizer)
    expected = draw()
    draw()
    load(tmp_path, model, optimizer)
    assert draw() == expected
    seed()
    draw()
    assert draw() == expected  # so that saving itself drew nothing


def test_two_saves_of_one_moment_have_the_same_bytes(tmp_path: Path) -> None:
    model = Tiny()
    optimizer = make_optimizer(model)
    train(model, optimizer, 2)
    for name in ("a", "b"):
        save(tmp_path / name, model, optimizer)
    names = ["optimizer.safetensors", "rng.safetensors", "trainer_state.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_optimizer_inside_accelerate_is_the_one_saved(tmp_path: Path) -> None:
    model = Tiny()
    bare = make_optimizer(model)
    wrapped = Accelerator(cpu=True).prepare_optimizer(bare)
    train(model, bare, 2)
    save(tmp_path, model, wrapped)
    state = load_file(tmp_path / "optimizer.safetensors")
    assert torch.equal(state["gate/exp_avg"], bare.state[model.gate]["exp_avg"])
    assert "idle/exp_avg" not in state
    bare.state[model.gate]["exp_avg"].zero_()
    load(tmp_path, model, wrapped)
    assert torch.equal(state["gate/exp_avg"], bare.state[model.gate]["exp_avg"])


def test_how_the_machine_computes_is_not_restored(tmp_path: Path) -> None:
    model = Tiny()
    optimizer = make_optimizer(model, foreach=True)
    train(model, optimizer, 1)
    save(tmp_path, model, optimizer)
    other = make_optimizer(model, foreach=False)
    load(tmp_path, model, other)
    assert other.param_groups[0]["foreach"] is False
    assert other.param_groups[1]["betas"] == (0.8, 0.99)


def test_a_state_of_this_run_that_the_checkpoint_lacks_is_forgotten(tmp_path: Path) -> None:
    model = Tiny()
    save(tmp_path, model, make_optimizer(model))
    optimizer = make_optimizer(model)
    train(model, optimizer, 1)
    load(tmp_path, model, optimizer)
    assert len(optimizer.state) == 0


# refusals


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Tiny()
    optimizer = make_optimizer(model)
    train(model, optimizer, 2)
    save(tmp_path, model, optimizer)
    return tmp_path


def refused(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, match: str, **options: Any
) -> None:
    """Loading fails with this message and leaves optimizer and generators as they were."""
    before = (everything(optimizer), torch.get_rng_state(), random.getstate())
    lr = [group.get("lr") for group in optimizer.param_groups]
    with pytest.raises(CheckpointError, match=match):
        load(folder, model, optimizer, **options)  # type: ignore[arg-type]
    for one, other in zip(before[0], everything(optimizer), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(before[1], torch.get_rng_state()) and before[2] == random.getstate()
    assert lr == [group.get("lr") for group in optimizer.param_groups]


def test_the_first_parameter_that_differs_is_named(saved: Path) -> None:
    model = Tiny()
    model.projector = nn.Linear(6, 4)
    model.adapter = nn.Linear(4, 3, bias=False)
    refused(
        saved,
        model,
        make_optimizer(model),
        r"parameter 0 of group 'projector' is 'projector.weight' \[5, 6\] torch.float32 in the "
        r"checkpoint and 'projector.weight' \[4, 6\]",
    )

    model = Tiny()
    model.adapter.to(torch.bfloat16)
    refused(saved, model, make_optimizer(model), r"'adapter.weight' \[3, 5\] torch.bfloat16 in thi")

    model = Tiny()
    groups = [
        {"name": "projector", "params": list(model.projector.parameters())},
        {"name": "adapter", "params": [model.adapter.weight, model.idle, model.gate]},
    ]
    refused(saved, model, torch.optim.AdamW(groups), r"parameter 1 of group 'adapter' is 'gate'")
    groups[1]["params"] = [model.adapter.weight]
    refused(saved, model, torch.optim.AdamW(groups), r"'gate' .* in the checkpoint and absent in")
    refused(
        saved,
        model,
        torch.optim.AdamW(model.parameters()),
        r"groups are \['adapter', 'projector'\], this run's are \['group-0'\]",
    )


@pytest.mark.parametrize(("key", "value"), [
    ("weight_decay", math.nan), ("weight_decay", "x"), ("betas", [math.nan, 0.9]), ("eps", 1.0),
    ("lr", math.inf), ("lr", "x"), ("lr", None), ("maximize", True),
])  # fmt: skip
def test_a_hyperparameter_that_is_not_this_runs_is_named(
    saved: Path, key: str, value: object
) -> None:
    file = saved / "trainer_state.json"
    state = json.loads(file.read_text())
    state["optimizer"]["groups"]["adapter"]["hyperparameters"][key] = value
    file.write_text(json.dumps(state))
    model = Tiny()
    refused(saved, model, make_optimizer(model), f"{key} of group 'adapter' is .* in the checkpoi")


def test_other_optimizers_are_refused(saved: Path) -> None:
    model = Tiny()
    refused(saved, model, torch.optim.SGD(model.parameters(), lr=1.0), "is SGD; only .*AdamW")
    refused(saved, model, torch.optim.Adam(model.parameters()), "is Adam; only")
    refused(saved, model, make_optimizer(model, amsgrad=True), "amsgrad=True")
    with pytest.raises(CheckpointError, match="amsgrad=True"):
        save(saved, model, make_optimizer(model, amsgrad=True))


def test_groups_and_parameters_need_their_own_names(tmp_path: Path) -> None:
    model = Tiny()
    twice = [{"name": "a", "params": [model.gate]}, {"name": "a", "params": [model.idle]}]
    with pytest.raises(CheckpointError, match="two parameter groups are called 'a'"):
        save(tmp_path, model, torch.optim.AdamW(twice))
    stranger = torch.optim.AdamW([nn.Parameter(torch.ones(2, 3))])
    with pytest.raises(CheckpointError, match=r"parameter 0 of group 'group-0', shape \[2, 3\]"):
        save(tmp_path, model, stranger)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_neither_saved_nor_loaded(saved: Path, value: float) -> None:
    model = Tiny()
    optimizer = make_optimizer(model)
    train(model, optimizer, 1)
    tensors = load_file(saved / "optimizer.safetensors")
    tensors["gate/exp_avg"].fill_(value)
    save_file(tensors, saved / "optimizer.safetensors")
    refused(saved, model, optimizer, "optimizer's gate/exp_avg holds NaN or infinity")
    optimizer.state[model.gate]["exp_avg_sq"].fill_(value)
    with pytest.raises(CheckpointError, match="gate/exp_avg_sq holds NaN or infinity"):
        save(saved, model, optimizer)


def test_missing_extra_and_misshapen_tensors_are_named(saved: Path) -> None:
    model, file = Tiny(), saved / "optimizer.safetensors"
    optimizer, good = make_optimizer(model), load_file(file)
    train(model, optimizer, 1)
    save_file({**good, "other/step": torch.ones(())}, file)
    refused(saved, model, optimizer, "tensor 'other/step' that belongs to no parameter")
    save_file({key: value for key, value in good.items() if key != "gate/step"}, file)
    refused(saved, model, optimizer, "lacks gate/step")
    save_file({**good, "gate/exp_avg": torch.ones(2)}, file)
    refused(saved, model, optimizer, r"gate/exp_avg has shape \[2\], this run needs \[\]")


def test_damaged_files_are_named(saved: Path) -> None:
    model, file = Tiny(), saved / "trainer_state.json"
    optimizer, text = make_optimizer(model), file.read_text()
    for content, match in (
        ("", "cannot be read"),
        ("[]", "version is None"),
        ('{"format_version": 7}', "version is 7; .* only version 1"),
        ('{"format_version": 1}', "'optimizer' is missing"),
        ("[" * 100_000, "cannot be read"),
    ):
        file.write_text(content)
        refused(saved, model, optimizer, f"trainer_state.json.*{match}")
    document = json.loads(text)
    document["rng"][0]["python"] = [3, [1, 2], None]
    file.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="random generators cannot be restored"):
        load(saved, model, optimizer)
    file.write_text(text)
    for name in ("rng.safetensors", "optimizer.safetensors"):
        content_bytes = (saved / name).read_bytes()
        (saved / name).write_bytes(content_bytes[:-3])
        refused(saved, model, optimizer, f"{name}: cannot be read")
        (saved / name).unlink()
        refused(saved, model, optimizer, f"{name}: cannot be read")
        (saved / name).write_bytes(content_bytes)
    load(saved, model, optimizer)


def test_each_rank_gets_its_own_generators(tmp_path: Path) -> None:
    model = Tiny()
    optimizer, states, expected = make_optimizer(model), [], []
    for rank in range(2):
        torch.manual_seed(rank)
        states.append(capture_rng())
        expected.append(float(torch.rand(())))
    save(tmp_path, model, optimizer, rng_states=states)
    for rank in (1, 0):
        load(tmp_path, model, optimizer, rank=rank)
        assert float(torch.rand(())) == expected[rank]
    refused(tmp_path, model, optimizer, r"saved by 2 process\(es\), and this is rank 2", rank=2)


def test_progress_must_survive_json(tmp_path: Path) -> None:
    model = Tiny()
    for progress in ({"best": float("-inf")}, {"a": (1, 2)}, {1: 2}, {"x": torch.ones(())}):
        with pytest.raises(CheckpointError, match="the training state"):
            save_training_state(
                tmp_path,
                optimizer=make_optimizer(model),
                scheduler_step=0,
                named_parameters=model.named_parameters(),
                progress=progress,
            )  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_cuda_devices_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    state = capture_rng()
    tensors = {**state.tensors, "cuda.0": torch.zeros(16, dtype=torch.uint8)}
    monkeypatch.setattr(rng_module.torch.cuda, "is_available", lambda: False)
    notes = restore_rng(RngState(state.values, tensors))
    assert len(notes) == 1 and "1 CUDA devices, this machine has 0" in notes[0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_json_values_come_back_as_they_were(value: Any) -> None:
    assert as_json(value, "it") == value
