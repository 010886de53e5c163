"""AdamW with float32 masters for parameters in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MasterAdamW(torch.optim.AdamW):
    """AdamW that steps a float32 copy of every half-precision parameter, and rounds the copy into it.

    At the learning rates of fine-tuning a step is smaller than the distance between neighbouring bfloat16 numbers:
    steps taken in bfloat16 itself are rounded away. Moments are float32 too. Float32 parameters step as in AdamW.

    Source: mixed precision training, Micikevicius et al., arXiv 1710.03740, section 3.1.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. closure: computes the loss again, as torch's optimizers take it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [(parameter, parameter.data) for parameter in self._half() if parameter.grad is not None]
        for parameter, stored in held:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            parameter.data = self.state[parameter].get("master", stored.float())
            parameter.grad = gradient.float()
        super().step()
        for parameter, stored in held:
            parameter.grad = None
            self.state[parameter]["master"] = parameter.data
            parameter.data = stored.copy_(parameter.data)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave: torch would cast masters and moments to the parameters' own precision."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point() and name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)

    def _half(self) -> list[torch.nn.Parameter]:
        every = (parameter for group in self.param_groups for parameter in group["params"])
        return [parameter for parameter in every if parameter.is_floating_point() and parameter.element_size() < 4]
