"""CrewGroup: the workers that render a frame together, as the driver sees them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from landmark_batch.parallel.shape import Candidate


@dataclass
class CrewGroup:
    """ranks[0] leads. state: 'forming', 'ready', 'ending' (its chunks are lost, the cause is being found), 'leaving'."""

    id: str
    epoch: int
    ranks: tuple[Candidate, ...]
    state: str = "forming"
    since: float = field(default_factory=time.monotonic)
    reason: str = ""

    @property
    def key(self) -> str:
        return self.ranks[0].address if len(self.ranks) == 1 else f"{self.ranks[0].address}#{self.id}.{self.epoch}"

    @property
    def name(self) -> str:
        return self.ranks[0].name if len(self.ranks) == 1 else f"{self.id}({'+'.join(rank.name for rank in self.ranks)})"

    def has(self, address: str) -> bool:
        return any(rank.address == address for rank in self.ranks)
