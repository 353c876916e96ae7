"""AdamW of a trainer with one rank: no weight is divided, so none is copied into buckets.

ZeRO with one rank would keep a second fp32 copy of the weights and flatten all gradients in each
step. Here AdamW updates every weight in place; only bf16 weights have a fp32 master copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.records.specs import OptimizerSpec

_NORM_EPSILON = 1e-6  # keeps the clipping factor finite, as in deepspeed and torch
# Numbers whose squares are summed in fp32, then in fp64. One sum in fp32 over 16 million numbers
# was .07 % too small on a CPU; over a million 5e-7, in the same time.
_SUMMED = 1 << 20


class WholeAdamW(torch.optim.AdamW):
    """Fused AdamW that measures, checks and clips the gradient in `step`.

    The weights of a bf16 model have fp32 masters; a hook adds each bf16 gradient to a fp32 one as
    soon as the backward pass has it. deepspeed's engine reads `overflow` and `_global_grad_norm`.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], spec: OptimizerSpec) -> None:
        self.overflow = False  # the last step was skipped: its gradient was not finite
        self._global_grad_norm = 0.0  # of the last step, before clipping; inf if it was skipped
        self._max_norm = spec.max_grad_norm
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        self._hooks: list[Any] = []
        masters = [{**g, "params": [self._add(p) for p in g["params"]]} for g in groups]
        super().__init__(
            masters,
            lr=spec.learning_rate,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            fused=True,
        )

    def master(self, weight: nn.Parameter) -> nn.Parameter:
        """The fp32 copy of a weight that is trained; the weight itself if it is fp32."""
        return self._masters[weight]

    def step(self, closure: Any = None) -> None:
        """Update all weights and free the gradients, unless a gradient is not finite."""
        assert closure is None, "deepspeed passes none"
        gradients = self._gradients()
        norm = total_norm(gradients)
        self.overflow = not bool(norm.isfinite())
        self._global_grad_norm = float("inf") if self.overflow else float(norm)
        if not self.overflow:
            excess = (self._global_grad_norm + _NORM_EPSILON) / (self._max_norm or float("inf"))
            # The fused kernel divides the gradient by it while it reads it anyway.
            self.grad_scale = norm.new_tensor(excess) if excess > 1.0 else None
            super().step()
            self.round_masters()
        for master in self._masters.values():
            master.grad = None

    def round_masters(self) -> None:
        """Set bf16 weights to their rounded masters."""
        pairs = [(w, m) for w, m in self._masters.items() if w is not m]
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([w for w, _ in pairs], [m for _, m in pairs])

    def move_state(self, device: torch.device) -> None:
        """Move moments, and masters other than the weights themselves, to a device."""
        for weight, master in self._masters.items():
            if master is not weight:
                master.data = master.data.to(device)
            state = self.state[master]
            for name in state.keys() & {"exp_avg", "exp_avg_sq"}:
                state[name] = state[name].to(device)

    def destroy(self) -> None:
        """Remove the hooks; deepspeed calls it when its engine is destroyed."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, weight: nn.Parameter) -> nn.Parameter:
        """Make the master of a weight; updates and files need it in one piece."""
        weight.data = weight.data.contiguous()
        if weight.dtype == torch.float32:
            self._masters[weight] = weight
            return weight
        master = nn.Parameter(weight.detach().float())
        self._masters[weight] = master
        self._hooks.append(weight.register_post_accumulate_grad_hook(self._collect))
        return master

    def _collect(self, weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter)
        master, gradient = self._masters[weight], weight.grad
        assert gradient is not None, "torch calls the hook after it has set the gradient"
        weight.grad = None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)

    def _gradients(self) -> list[Tensor]:
        """All gradients; a weight that no loss depends on has one of zeros, as under ZeRO."""
        for master in self._masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [m.grad for m in self._masters.values() if m.grad is not None]


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together: a scalar on their device; inf or NaN if one is."""
    flat = [g.reshape(-1) for g in gradients]
    squares = [torch.dot(part, part) for g in flat for part in g.split(_SUMMED)]
    return torch.stack(squares).double().sum().sqrt().float()
