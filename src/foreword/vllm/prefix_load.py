"""`PrefixReference`: the prefix of a vLLM request; `PrefixLoad`: the blocks of the paged cache it is written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foreword.core import KVPrefix

if TYPE_CHECKING:
    import torch

NAME = "foreword"
NULL_BLOCK = 0
"""vLLM's block for positions that a sliding window no longer sees; nothing is ever written there."""


@dataclass(frozen=True)
class PrefixReference:
    """The first ``length`` tokens of a request are not run: their keys and values come out of a bank.

    Attributes:
        source: where the bank keeps them, see `KVPrefix.source`.
        digest: what they must be.
        length: how many positions are used.
        learned: the tokens in their places are placeholders, which mean nothing when they are run.
        key: a secret of the server that wrote this. Other routes of vLLM hand a client's own parameters on, and nobody
            may choose a prefix by them.
    """

    source: str
    digest: str
    length: int
    learned: bool
    key: str

    @classmethod
    def of(cls, prefix: KVPrefix, length: int, key: str) -> PrefixReference:
        return cls(prefix.source, prefix.digest, length, prefix.token_ids is None, key)

    @classmethod
    def found_in(cls, params: Mapping[str, Any] | None) -> PrefixReference | None:
        """That of a request's ``kv_transfer_params``; whether they can be trusted, `trusted` says."""
        entry = (params or {}).get(NAME)
        if entry is None:
            return None
        try:
            found = cls(**entry)
        except TypeError:
            return cls("", "", 1, True, "")
        texts = (found.source, found.digest, found.key)
        well_formed = all(isinstance(text, str) for text in texts) and type(found.length) is int and found.length > 0
        return found if well_formed else cls("", "", 1, True, "")

    def trusted(self, secret: str) -> bool:
        """Whether a server with this secret wrote it; replicas of one server add their rank to theirs."""
        return bool(self.key) and secret.startswith(self.key)

    def params(self) -> dict[str, Any]:
        """Inverse of `found_in`."""
        return {NAME: asdict(self)}

    @property
    def salt(self) -> str:
        """Keeps vLLM's own prefix cache apart: blocks are shared by requests with one prefix, and by no others."""
        return f"{self.digest}-{self.key}"


@dataclass(frozen=True)
class PrefixLoad:
    """One prefix on its way into the cache of a request.

    Attributes:
        request_id: whose.
        start, stop: the positions to write; what is in front of them is in the cache already.
        blocks: ids of the request's blocks, for every group of layers.
        refused: why it must not be answered; nothing is written then.
    """

    request_id: str
    injection: PrefixReference
    start: int
    stop: int
    blocks: tuple[tuple[int, ...], ...]
    refused: str | None = None


def slots(blocks: Sequence[int], block_size: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where positions ``start..stop-1`` lie in a paged cache.

    Args:
        blocks: ids of a request's blocks, in order of position.
        block_size: positions of a block.

    Returns:
        the positions that have a block (those outside of a sliding window have none), and their slots; int64 both.
    """
    import torch

    positions = torch.arange(start, stop)
    held = torch.tensor(blocks, dtype=torch.int64)[positions // block_size]
    positions, held = positions[held != NULL_BLOCK], held[held != NULL_BLOCK]
    return positions, held * block_size + positions % block_size
