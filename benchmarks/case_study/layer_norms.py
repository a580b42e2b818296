"""The two LayerNorms that Phase 1's fixes need to be without: planted into a fresh model."""

from pathlib import Path
from typing import cast

from torch import Tensor, nn
from typing_extensions import override

from safe.models.fusion_adapter import GatedResidual
from safe.models.projectors import Amplitude
from safe.models.safe_model import SAFEModel
from safe.training.callbacks import Callback
from safe.training.experiment import Experiment


class NormalisedAmplitude(nn.Module):
    """``LayerNorm(tanh(x) * scale)`` over each token."""

    def __init__(self, amplitude: Amplitude, hidden_size: int) -> None:
        super().__init__()
        self.amplitude, self.norm = amplitude, nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N * H] pre-activations to as many elements of normalised tokens."""
        tokens = self.amplitude(x).unflatten(-1, (-1, *self.norm.normalized_shape))
        return cast(Tensor, self.norm(tokens)).flatten(-2)


class NormalisedResidual(GatedResidual):
    """``hidden + LayerNorm(gate * clamp(residual_scale) * branch)``."""

    def __init__(self, gated: GatedResidual, hidden_size: int) -> None:
        super().__init__(gated.residual_scale.item(), gated.maximum)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden: Tensor, branch: Tensor, gate: float) -> Tensor:
        """Add the normalised gated branch; see :class:`GatedResidual`."""
        nothing = hidden.new_zeros(()).expand_as(hidden)
        gated = super().forward(nothing.float(), branch.float(), gate)
        return hidden + cast(Tensor, self.norm(gated)).to(hidden.dtype)


def plant(model: SAFEModel) -> None:
    """Put a LayerNorm behind the projector's scale, and one behind each gate."""
    width = model.config.hidden_size
    model.projector.amplitude = NormalisedAmplitude(
        cast(Amplitude, model.projector.amplitude), width
    )
    for block in model.fusion.blocks().values():
        device = block.residual.residual_scale.device
        block.residual = NormalisedResidual(block.residual, width).to(device)


class PlantLayerNorms(Callback):
    """Plants them before the training looks at the model."""

    @override
    def on_run_begin(self, folder: Path, experiment: Experiment) -> None:
        plant(experiment.model)
