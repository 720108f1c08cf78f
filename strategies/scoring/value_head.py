"""The value head: a linear or two-layer probe on the served model's hidden state at the end of a step.

    v = sigmoid(a z + b),   z = f((h - mean) / std)
    linear   f(x) = w x + b                    w [1, d]
    mlp      f(x) = w2 silu(w1 x + b1) + b2    w1 [m, d], w2 [1, m]

h: the last hidden state after the final norm, at the step's last token, its separator included; float32 [d]. a, b:
Platt scaling. The step's prefix is in the KV cache, so a value costs the forward pass of one token, which the next step
needs anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import silu

from strategies.errors import RequestFailed
from strategies.scoring.calibration import Floats, Platt

if TYPE_CHECKING:
    from strategies.search.context import SearchContext
    from strategies.search.node import Node

Arch = Literal["linear", "mlp"]
UNSCALED = Platt()
LAYERS: Mapping[Arch, tuple[str, ...]] = {"linear": ("w", "b"), "mlp": ("w1", "b1", "w2", "b2")}


@dataclass(frozen=True, slots=True)
class ValueHead:
    """tensors: mean [d], std [d] and those of the architecture, float32."""

    arch: Arch
    tensors: Mapping[str, Tensor]
    platt: Platt = UNSCALED

    @property
    def hidden_size(self) -> int:
        return len(self.tensors["mean"])

    @torch.inference_mode()
    def scores(self, hidden: NDArray[np.float32]) -> Floats:
        """z of hidden states [N, d]: [N]."""
        x = (torch.from_numpy(hidden) - self.tensors["mean"]) / self.tensors["std"]
        return forward(self.arch, self.tensors, x).double().numpy()

    def values(self, hidden: NDArray[np.float32]) -> Floats:
        """v of hidden states [N, d]: [N]."""
        return self.platt(self.scores(hidden))


@dataclass(frozen=True, slots=True)
class HeadValue:
    """Implements `ValueFunction` by a value head. automatic: whether it passed the acceptance rule of its training."""

    head: ValueHead
    automatic: bool = True
    calibrated: bool = True

    async def values(self, context: "SearchContext", nodes: "Sequence[Node]") -> list[float]:
        """One token of the served model per node. Raises BudgetExhausted, RequestFailed for a state that is not
        finite."""
        hidden = np.array(await context.hidden(nodes), np.float32)
        values = self.head.values(hidden)
        if not np.isfinite(values).all():
            raise RequestFailed("the model's hidden state is not finite; it has no value")
        return [float(value) for value in values]


def forward(arch: Arch, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """f of standardised states [N, d]: [N]. Differentiable."""
    if arch == "linear":
        return (x @ tensors["w"].T + tensors["b"])[:, 0]
    inner = silu(x @ tensors["w1"].T + tensors["b1"])
    return (inner @ tensors["w2"].T + tensors["b2"])[:, 0]
