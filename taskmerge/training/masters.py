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
        held = self._with_masters()
        super().step()
        for group, place, parameter, master in held:
            own = self.state.pop(master)
            self.state[parameter] = {**own, "master": master.data}
            group["params"][place] = parameter
            parameter.copy_(master.data)
            parameter.grad = None
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

    def _with_masters(self) -> list[tuple[dict[str, Any], int, torch.nn.Parameter, torch.nn.Parameter]]:
        """Puts masters in the place of half-precision parameters with gradients; says of which group and place.

        A parameter's own data is not exchanged: autograd would forget what data parallel training hooked to it.
        """
        held = []
        for group in self.param_groups:
            for place, parameter in enumerate(group["params"]):
                half = parameter.is_floating_point() and parameter.element_size() < 4
                if not half or parameter.grad is None:
                    continue
                own = dict(self.state.pop(parameter, {}))
                master = torch.nn.Parameter(own.pop("master") if "master" in own else parameter.detach().float())
                master.grad = parameter.grad.float()
                if own:
                    self.state[master] = own
                group["params"][place] = master
                held.append((group, place, parameter, master))
        return held
