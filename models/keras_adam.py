"""Adam as Keras computes it, so that a twin goes on training where Lightning stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class KerasAdam(torch.optim.Adam):
    """`torch.optim.Adam` whose epsilon lies where Keras puts it.

    Keras adds epsilon before the second moment's bias is corrected, torch after. So Keras's step t equals torch's with
    `epsilon / sqrt(1 - beta_2^t)`, 32 times as much in the first step: that is what torch's own step is given here.

    Source mirrored: `keras/src/optimizers/adam.py`, `Adam.update_step`; defaults as there.

    Args:
        params: as in `torch.optim.Adam`.
        learning_rate: above zero.
        beta_1: decay of the first moment, 0 to below 1.
        beta_2: decay of the second moment, 0 to below 1.
        epsilon: Keras's, above zero.
        options: of `torch.optim.Adam`, such as `fused`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(params, lr=learning_rate, betas=(beta_1, beta_2), eps=epsilon, **options)
        # Fused, torch's would unscale gradients in the step itself, for which Lightning refuses to clip them under
        # mixed precision, scaled or not. They are unscaled before it, as for any other optimiser; a step that is left
        # out for gradients that are no numbers is then not counted either.
        self._step_supports_amp_scaling = False
        for group in self.param_groups:
            # In the group, which checkpoints carry, and not taken from the tensors' state, which may be on a GPU.
            group["keras_epsilon"], group["iterations"] = group["eps"], 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; as in `torch.optim.Adam`."""
        loss = None
        if closure is not None:  # Lightning's has the backward pass in it, after which it is known who learns
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Where nothing has a gradient, as while the head learns alone, torch makes no step, and counts none.
            if any(parameter.grad is not None for parameter in group["params"]):
                group["iterations"] += 1
                group["eps"] = group["keras_epsilon"] / (1 - group["betas"][1] ** group["iterations"]) ** 0.5
        super().step()
        return loss
