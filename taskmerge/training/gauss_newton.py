"""One Gauss-Newton step for many ridges at once, from Jacobian products alone.

Minimises Σ_i ‖y_i - e_i - J_i δ‖² + μ‖δ‖² over δ: (A + μI) δ = g with A = Σ JᵀJ and g = Σ Jᵀ(y - e); for another loss A
= Σ JᵀHJ with its Hessian H. A is never formed. Conjugate gradients and Lanczos walk through the same Krylov space, and
that space does not depend on μ: one walk of `iterations` products solves the system for every μ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Embed = Callable[[dict[str, Tensor], Any], Tensor]
"""(parameters by name, a batch) -> embeddings (items, d): everything else in the model is fixed."""


class Objective(Protocol):
    """A loss of a batch's embeddings (items, d)."""

    def descent(self, embeddings: Tensor) -> Tensor:
        """Compute minus the loss's gradient at the embeddings, (items, d)."""
        ...

    def curvature(self, embeddings: Tensor, direction: Tensor) -> Tensor:
        """Multiply a direction (items, d) by the loss's Hessian at the embeddings."""
        ...


@dataclass(frozen=True)
class SquaredError:
    """½ ‖target - embedding‖². targets: (items, d)."""

    targets: Tensor

    def descent(self, embeddings: Tensor) -> Tensor:
        """Compute minus the loss's gradient at the embeddings, (items, d)."""
        return self.targets - embeddings

    def curvature(self, embeddings: Tensor, direction: Tensor) -> Tensor:
        """Multiply a direction (items, d) by the loss's Hessian: the identity."""
        return direction


@dataclass(frozen=True)
class InfoNCE:
    """-log softmax(bank · embedding / temperature)[label], generalised Gauss-Newton (Schraudolph 2002).

    bank: (texts, d); labels: (items,) int64, each item's text.
    """

    bank: Tensor
    labels: Tensor
    temperature: float

    def descent(self, embeddings: Tensor) -> Tensor:
        """Compute minus the loss's gradient at the embeddings, (items, d)."""
        return (self.bank[self.labels] - self._shares(embeddings) @ self.bank) / self.temperature

    def curvature(self, embeddings: Tensor, direction: Tensor) -> Tensor:
        """Multiply a direction (items, d) by the loss's Hessian."""
        shares = self._shares(embeddings)
        scores = direction @ self.bank.mT
        spread = shares * (scores - (shares * scores).sum(dim=1, keepdim=True))
        return spread @ self.bank / self.temperature**2

    def _shares(self, embeddings: Tensor) -> Tensor:
        return torch.softmax(embeddings @ self.bank.mT / self.temperature, dim=1)


@dataclass(frozen=True)
class Krylov:
    """A walk: basis (steps, parameters) with orthonormal rows, the tridiagonal A has in it, and ‖g‖."""

    basis: Tensor
    tridiagonal: Tensor
    length: float

    @property
    def largest(self) -> float:
        """The largest eigenvalue of A seen, which ridges are given relative to."""
        return float(torch.linalg.eigvalsh(self.tridiagonal)[-1])

    def solve(self, ridge: float) -> Tensor:
        """Return δ (parameters,) for μ = ridge · `largest`."""
        start = torch.zeros(len(self.tridiagonal), dtype=torch.float64)
        start[0] = self.length
        lifted = self.tridiagonal + ridge * self.largest * torch.eye(len(start), dtype=torch.float64)
        weights = torch.linalg.solve(lifted, start)
        return self.basis.mT @ weights.to(self.basis)


def walk(
    embed: Embed, parameters: Parameters, batches: Sequence[tuple[Any, Objective]], iterations: int
) -> Krylov | None:
    """Run Lanczos with full re-orthogonalisation. batches: (batch, its objective). None if the gradient is zero."""
    gradient = _gradient(embed, parameters, batches)
    length = float(gradient.norm())
    if not length > 0:
        return None
    rows = [gradient / length]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(iterations):
        moved = _curvature(embed, parameters, batches, rows[-1])
        diagonal.append(float(rows[-1] @ moved))
        for _ in range(2):  # once is not enough in float32
            basis = torch.stack(rows)
            moved = moved - basis.mT @ (basis @ moved)
        left = float(moved.norm())
        if step + 1 == iterations or left <= 1e-6 * diagonal[0]:
            break
        beside.append(left)
        rows.append(moved / left)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside, dtype=torch.float64)
    tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    return Krylov(torch.stack(rows), tridiagonal, length)


def moved_by(parameters: Parameters, step: Tensor) -> dict[str, Tensor]:
    """Return the parameters + δ, δ flat in their order."""
    return {
        name: value + part for (name, value), part in zip(parameters.items(), _split(step, parameters), strict=True)
    }


def _gradient(embed: Embed, parameters: Parameters, batches: Sequence[tuple[Any, Objective]]) -> Tensor:
    """g = Σ Jᵀ descent, flat."""
    total: Tensor | None = None
    for batch, objective in batches:
        with _differentiable():
            found: Any = torch.func.vjp(lambda own, batch=batch: embed(own, batch), dict(parameters))
            output, pull = found
            (part,) = pull(objective.descent(output).detach())
        flat = _flat(part)
        total = flat if total is None else total + flat
    assert total is not None
    return total


def _curvature(
    embed: Embed, parameters: Parameters, batches: Sequence[tuple[Any, Objective]], direction: Tensor
) -> Tensor:
    """Σ Jᵀ H (J v), flat."""
    tangent = dict(zip(parameters, _split(direction, parameters), strict=True))
    total = torch.zeros_like(direction)
    for batch, objective in batches:

        def of(own: dict[str, Tensor], batch: Any = batch) -> Tensor:
            return embed(own, batch)

        with _differentiable():
            pushed: Any = torch.func.jvp(of, (dict(parameters),), (tangent,))
            pulled: Any = torch.func.vjp(of, dict(parameters))
            (part,) = pulled[1](objective.curvature(pulled[0], pushed[1]).detach())
        total = total + _flat(part)
    return total


@contextmanager
def _differentiable() -> Iterator[None]:
    """Fused attention has no forward-mode derivative; the plain one does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _flat(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts.values()])


def _split(flat: Tensor, parameters: Parameters) -> Iterator[Tensor]:
    start = 0
    for value in parameters.values():
        yield flat[start : start + value.numel()].view_as(value)
        start += value.numel()
