"""Say whether the signal is visible next to the text, at the input and where the two meet.

Records (layer None is the input of the decoder):

- ``text``: statistics of the real text tokens (padding and spliced signal excluded, sinks apart).
- ``projector``: the same for its tokens, and ``saturated``, ``dead_units``, ``cosine_between_*``.
- ``signal``: the same for spliced tokens, at the input and after every decoder layer.
- ``projector`` or ``signal``: ``l2_to_text`` (if equally wide) and ``rms_to_text``, by layer.
- ``fusion``: ``contribution_*`` = ||fused - hidden|| / ||hidden|| per ordinary text token, which is
  what really arrived; ``branch_ratio`` = ||branch|| / ||hidden||; ``gated_ratio`` = gate times
  branch_ratio, what should have arrived; ``calls`` per forward pass; ``after_layer``, the decoder
  layer that was entered last when the fusion ran.
- ``gate``: ``outer_gate``, the factor before all gates, which both of them hold.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from probes.batch import Batch, Positions
from probes.context import Context
from probes.errors import ProbeError
from probes.norms import Floats, PassNorms
from probes.record import Record, Rows
from probes.resolved_path import ResolvedPath
from probes.session import Call, Session
from probes.signal_tokens import SignalTokens, as_tokens
from probes.statistics import Indices, TokenPool, percentile, report_pools


def measure(context: Context) -> list[Record]:
    """Measure all batches in one forward pass each, without gradients, in eval mode.

    Raises:
        ProbeError: no batches, or hidden states whose tokens cannot be told apart.
    """
    rows = context.rows("magnitude")
    meter = _Meter(context.path)
    with context.session() as session:
        meter.install(session)
        for batch in context.need_batches("magnitude"):
            # a token beyond float32's squares is rare: then once more, with wider sums
            if not meter.look(session, batch):
                meter.look(session, batch, wide=True)
        meter.report(rows, session.forwards)
    return rows.records


class _Part(NamedTuple):
    """Something that is held against the hidden states it was added to."""

    statistic: str
    layer: int
    part: int
    """Number of its norms."""
    hidden: int
    """Number of the norms of the hidden states."""


class _Meter:
    """Looks at every place during a forward pass and keeps norms per token."""

    def __init__(self, path: ResolvedPath) -> None:
        self.path = path
        self.spliced = path.spec.splice is not None
        self.places: list[int | None] = [None, *(path.layers if self.spliced else path.fusion)]
        self.text = {place: TokenPool() for place in self.places}
        self.signal = {place: TokenPool() for place in self.places}
        self.tokens = SignalTokens()
        self.ratios: dict[tuple[str, int], list[Floats]] = {}
        self.calls = dict.fromkeys(path.fusion, 0)
        self.after: dict[int, int] = {}

    def look(self, session: Session, batch: Batch, *, wide: bool = False) -> bool:
        """Measure one forward pass; False, and nothing is kept, when float32 is too narrow."""
        self.batch, self.wide = batch, wide
        self.norms = PassNorms(wide=wide)
        self.entered = -1
        self.shapes: list[torch.Size] = []
        self.hidden: dict[int | None, int] = {}
        self.projected: list[int] = []
        self.parts: list[_Part] = []
        self.fused: set[int] = set()
        self.positions: Positions | None = None
        session.forward(batch)
        return self._keep()

    def install(self, session: Session) -> None:
        """Watch the projector, the decoder layers and the fusion."""
        path = self.path
        session.watch(path.projector, self._project)
        for index, layer in path.layers.items():
            session.watch_input(layer, partial(self._enter, index))
            if index in self.places:
                session.watch(layer, partial(self._leave, index), first=True)
        for index, module in path.fusion.items():
            if index in path.residual:
                session.watch(path.residual[index], partial(self._fuse, index))
            elif index in path.branch:
                session.watch(path.branch[index], partial(self._branch, index))
            else:
                session.watch(module, partial(self._called, index))

    def _project(self, call: Call) -> None:
        tokens = as_tokens(call.result)
        self.projected.append(self._norms_of(tokens))
        if not self.wide:  # a second look at the same batch must not count twice
            self.tokens.add(tokens, self.path.scale)

    def _enter(self, layer: int, call: Call) -> None:
        """A decoder layer starts. Its input is the reference for a branch inside the layer."""
        self.entered = layer
        if layer == min(self.path.layers):
            self._see(None, call.hidden)
        if layer in self.path.branch and layer not in self.path.residual:
            self._see(layer, call.hidden)

    def _leave(self, layer: int, call: Call) -> None:
        if layer not in self.fused:  # a fusion hook that came first has already changed the output
            self._see(layer, call.result)

    def _see(self, place: int | None, hidden: Tensor) -> None:
        """Hidden states [B, T, H] at a place; the newest before the fusion counts."""
        if self.positions is None:
            found = self.batch.positions(hidden.shape, self.path.spec.splice)
            signal = None if found.signal is None else found.signal.cpu()
            self.positions = Positions(found.text.cpu(), signal)
        self.hidden[place] = self._norms_of(hidden)

    def _norms_of(self, tensor: Tensor) -> int:
        self.shapes.append(tensor.shape[:-1])
        return self.norms.add(tensor)

    def _called(self, layer: int, _call: Call) -> None:
        self.calls[layer] += 1
        self.after[layer] = self.entered

    def _fuse(self, layer: int, call: Call) -> None:
        """The residual was called with (hidden, branch) and returned the fused hidden states."""
        self._called(layer, call)
        given = [t for t in call.tensors if t.dim() == 3][:2]
        if len(given) < 2 or not given[0].shape == given[1].shape == call.result.shape:
            shapes = ", ".join(str(list(t.shape)) for t in call.tensors)
            raise ProbeError(
                f"the residual of layer {layer} must be called with hidden and branch of the shape "
                f"that it returns, {list(call.result.shape)}; it was called with {shapes}"
            )
        hidden, branch = given
        self._see(layer, hidden)
        self.fused.add(layer)
        self._ratio("contribution", layer, _wide(call.result).to(hidden.device) - _wide(hidden))
        self._ratio("branch_ratio", layer, branch)
        gated = self._gated(layer, branch)
        if gated is not None:
            self._ratio("gated_ratio", layer, gated)

    def _branch(self, layer: int, call: Call) -> None:
        """The branch was made; what arrives is its product with the gates, if these are known."""
        self._called(layer, call)
        branch = call.result
        if layer not in self.hidden:
            raise ProbeError(
                f"the branch of layer {layer} ran before decoder layer {layer} was entered; give "
                "SignalPath.fusion as a mapping from decoder layer to name"
            )
        self._ratio("branch_ratio", layer, branch)
        gated = self._gated(layer, branch)
        if gated is not None:
            self._ratio("contribution", layer, gated)

    def _gated(self, layer: int, branch: Tensor) -> Tensor | None:
        """Gate times branch; None when the gate has another shape (heads) than can be applied."""
        outer = self.path.outer_gate
        if layer not in self.path.gates:
            return _wide(branch) * outer
        gate = self.path.gates[layer].values()
        if gate.numel() not in (1, branch.shape[-1]):
            return None
        return _wide(branch) * (gate.to(branch.device, _wide(branch[:0]).dtype) * outer)

    def _ratio(self, statistic: str, layer: int, part: Tensor) -> None:
        """Hold ||part|| against ||hidden|| of the ordinary text tokens."""
        hidden = self.hidden[layer]
        if part.shape[:-1] != self.shapes[hidden]:
            raise ProbeError(
                f"the branch of layer {layer} has {list(part.shape[:-1])} tokens, the hidden "
                f"states {list(self.shapes[hidden])}; name the module that returns [B, T, H]"
            )
        self.parts.append(_Part(statistic, layer, self._norms_of(part), hidden))

    def _keep(self) -> bool:
        """Sort the tokens of this forward pass into text and signal."""
        if self.positions is None:
            raise ProbeError("the decoder layers of the signal path were never called")
        norms = self.norms.read()
        if norms is None:
            return False
        text, signal = (_indices(mask) for mask in self.positions)
        for place, number in self.hidden.items():
            self.text[place].add(norms[number], text)
            if signal is not None:
                self.signal[place].add(norms[number], signal)
        for number in self.projected:
            self.tokens.pool.add(norms[number])
        for statistic, layer, part, number in self.parts:
            hidden = norms[number]
            chosen = (hidden.ordinary & (hidden.l2 > 0)).reshape(-1)[text]
            size = hidden.l2.reshape(-1)[text][chosen].astype(np.float64)
            ratio = norms[part].l2.reshape(-1)[text][chosen] / size
            self.ratios.setdefault((statistic, layer), []).append(ratio)
        return True

    def report(self, rows: Rows, forwards: int) -> None:
        """Write all records."""
        report_pools(rows, "text", self.text)
        rows.add("projector", "calls", self.tokens.calls / forwards, "calls/forward")
        if self.tokens.calls:
            self.tokens.report(rows)
        if self.spliced:
            report_pools(rows, "signal", self.signal)
        for place in self.places:
            if self.spliced:
                self._compare(rows, "signal", self.signal[place], place)
            else:
                self._compare(rows, "projector", self.tokens.pool, place)
        self._report_fusion(rows, forwards)

    def _compare(self, rows: Rows, component: str, signal: TokenPool, place: int | None) -> None:
        """Signal against text at one place, by medians."""
        text = self.text[place]
        if not (text.l2_median > 0 and np.isfinite(signal.l2_median)):
            return
        ratio = signal.l2_median / text.l2_median
        if signal.width == text.width:
            rows.add(component, "l2_to_text", ratio, "ratio", place)
        ratio *= (text.width / signal.width) ** 0.5
        rows.add(component, "rms_to_text", ratio, "ratio", place)

    def _report_fusion(self, rows: Rows, forwards: int) -> None:
        if self.path.spec.outer_gate is not None:
            rows.add("gate", "outer_gate", self.path.outer_gate, "factor")
        for layer, calls in self.calls.items():
            rows.add("fusion", "calls", calls / forwards, "calls/forward", layer)
            if layer in self.after:
                rows.add("fusion", "after_layer", self.after[layer], "layer", layer)
        for (statistic, layer), parts in sorted(self.ratios.items()):
            values = np.sort(np.concatenate(parts))
            if statistic != "contribution":
                rows.add("fusion", statistic, percentile(values, 50), "ratio", layer)
                continue
            for name, percent in (("p5", 5), ("median", 50), ("p95", 95)):
                value = percentile(values, percent)
                rows.add("fusion", f"contribution_{name}", value, "ratio", layer)


def _indices(mask: Tensor | None) -> Indices | None:
    """Flat indices of the positions in a mask [B, T]."""
    return None if mask is None else np.flatnonzero(mask.numpy())


def _wide(tensor: Tensor) -> Tensor:
    """In float32 or float64, so that differences and products are not rounded to half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
