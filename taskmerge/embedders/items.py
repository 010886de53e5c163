"""Items prepared once, encoded once where the encoder does not learn, handed out as batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskmerge.embedders.prompts import Role
from taskmerge.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from taskmerge.embedders.embedder import OmniEmbedder

Prepare = Callable[[Sequence[Any], str | None, Role | None], dict[str, Any]]
"""`Embedder.prepare`."""
ENCODE_BATCH = 32


class PreparedItems:
    """Items of one embedder, numbered in the order they were added.

    They stay as they came: the model's own preparation does all the work when a batch is made.
    """

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare
        self.modalities: list[str] = []
        self.roles: list[Role | None] = []
        self.rows: list[Any] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, item: Any, modality: str, role: Role | None = None) -> None:
        """Keep one decoded item. role: what it is embedded as. Raises UsageError when it cannot be used."""
        self.rows.append(item)
        self.modalities.append(modality)
        self.roles.append(role)

    def encode(self) -> None:
        """Run every item through its frozen encoder, once, where the embedder can stop and go on there."""

    def features(self, numbers: Sequence[int], texts: Sequence[str] = (), noise: float = 0.0) -> dict[str, Any]:
        """One batch: these items, then these texts, all as the items' role.

        noise: standard deviation of Gaussian noise on prepared values; where nothing is prepared there is none.
        """
        modality = self._modality(numbers, texts)
        return self.prepare([*(self.rows[number] for number in numbers), *texts], modality, self._role(numbers))

    def _modality(self, numbers: Sequence[int], texts: Sequence[str]) -> str | None:
        """That of all of them, None for a mixed batch."""
        modalities = {self.modalities[number] for number in numbers} | ({"text"} if texts else set())
        return modalities.pop() if len(modalities) == 1 else None

    def _role(self, numbers: Sequence[int]) -> Role | None:
        roles = {self.roles[number] for number in numbers}
        if len(roles) > 1:
            raise UsageError("queries and documents in one batch of items")
        return roles.pop() if roles else None


class GraftedItems(PreparedItems):
    """Items of a grafted embedder: each is prepared when it is added, and may be encoded before it is run."""

    def __init__(
        self,
        prepare: Prepare,
        graft: OmniEmbedder,
        prompt: Callable[[Role | None, str | None], str | None],
    ) -> None:
        """prompt: what stands before items of a role and modality."""
        super().__init__(prepare)
        self.graft, self.prompt = graft, prompt
        self.encoded = False

    def add(self, item: Any, modality: str, role: Role | None = None) -> None:
        own = modality in self.graft.inputs.modalities
        super().add(item if own else self.graft.prepare(item, modality), modality, role)

    def encode(self) -> None:
        import torch

        if self.encoded:
            return
        with torch.no_grad():
            for start in range(0, len(self.rows), ENCODE_BATCH):
                by_tower: dict[str, list[int]] = {}
                for number in range(start, min(start + ENCODE_BATCH, len(self.rows))):
                    if self.modalities[number] in self.graft.tower_of:
                        by_tower.setdefault(self.graft.tower_of[self.modalities[number]], []).append(number)
                for tower, members in by_tower.items():
                    self._encode(tower, members)
        self.encoded = True

    def _encode(self, tower: str, members: Sequence[int]) -> None:
        import torch

        lengths = torch.tensor([len(self.rows[number]) for number in members])
        values = torch.nn.utils.rnn.pad_sequence([self.rows[number] for number in members], batch_first=True)
        like = self.graft.projector(tower).norm.weight
        output = self.graft.encode_media(tower, values.to(like), lengths.to(like.device)).cpu()
        for number, length, row in zip(members, lengths.tolist(), output, strict=True):
            self.rows[number] = row[: self.graft.encoder(tower).token_count(length)].clone()

    def features(self, numbers: Sequence[int], texts: Sequence[str] = (), noise: float = 0.0) -> dict[str, Any]:
        own: list[Any] = []
        media: list[dict[str, Tensor]] = []
        for number in numbers:
            row, modality = self.rows[number], self.modalities[number]
            grafted = modality in self.graft.tower_of
            own.append({} if grafted else {modality: row})
            media.append({self.graft.tower_of[modality]: _noisy(row, noise)} if grafted else {})
        media += [{} for _ in texts]
        prompt = self.prompt(self._role(numbers), self._modality(numbers, texts))
        return self.graft.assemble([*own, *texts], media, prompt, encoded=self.encoded)


def _noisy(row: Tensor, noise: float) -> Tensor:
    import torch

    return row + noise * torch.randn_like(row) if noise else row
