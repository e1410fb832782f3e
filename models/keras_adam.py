"""Adam as Keras computes it, so that the Keras twin can continue the training where Lightning stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class KerasAdam(torch.optim.Adam):
    """`torch.optim.Adam` with epsilon in the place where Keras has it.

    Keras adds epsilon before the second moment's bias correction, torch after it. So Keras's step t equals torch's step
    with epsilon replaced by `epsilon / sqrt(1 - beta_2^t)`, which is 32 times as large in the first step. This class
    gives that value to torch's own step.

    Source mirrored: `keras/src/optimizers/adam.py`, `Adam.update_step`; defaults as there.

    Args:
        params: as in `torch.optim.Adam`.
        learning_rate: above zero.
        beta_1: decay of the first moment, 0 to below 1.
        beta_2: decay of the second moment, 0 to below 1.
        epsilon: as in Keras, above zero.
        options: further arguments of `torch.optim.Adam`, such as `fused`.
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
        # torch's fused Adam would unscale the gradients inside its step, and for that Lightning refuses gradient
        # clipping under mixed precision, whether they are scaled or not. With False they are unscaled before the step,
        # as for any other optimiser. A step that is skipped because of NaN or infinite gradients is then not counted.
        self._step_supports_amp_scaling = False
        for group in self.param_groups:
            # The count is kept in the group, which is saved in checkpoints. The tensors' state may be on a GPU.
            group["keras_epsilon"], group["iterations"] = group["eps"], 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step, as in `torch.optim.Adam`."""
        loss = None
        if closure is not None:  # Lightning's contains the backward pass, so only afterwards gradients are known
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # If nothing in a group has a gradient, as while only the head is trained, torch takes and counts no step.
            if any(parameter.grad is not None for parameter in group["params"]):
                group["iterations"] += 1
                group["eps"] = group["keras_epsilon"] / (1 - group["betas"][1] ** group["iterations"]) ** 0.5
        super().step()
        return loss
