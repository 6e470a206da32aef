"""`PrefixReference`: names the prefix of a vLLM request; `PrefixLoad`: one to be written into the request's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foreword.core import KVPrefix

if TYPE_CHECKING:
    import torch

PARAMS_KEY = "foreword"
"""Where `PrefixReference` stands in a request's ``kv_transfer_params``."""

NULL_BLOCK_ID = 0
"""vLLM's null block, for positions that a sliding window no longer sees; nothing is ever written there."""


@dataclass(frozen=True)
class PrefixReference:
    """The prefix of a request: the keys and values of its first ``length`` tokens come out of the bank.

    It travels in the request's ``kv_transfer_params``, under `PARAMS_KEY` and the names of these attributes.

    Attributes:
        source: where the bank keeps the prefix, see `KVPrefix.source`.
        digest: of the prefix; the worker compares it with what it reads.
        length: how many positions are used.
        learned: the prefix was learned, so its tokens are placeholders that must not be run.
        key: the connector's ``engine_id``, which clients do not know. Other routes of vLLM pass on a client's own
            ``kv_transfer_params``; without the key a client could choose a prefix by them.
    """

    source: str
    digest: str
    length: int
    learned: bool
    key: str

    @classmethod
    def from_prefix(cls, prefix: KVPrefix, length: int, key: str) -> PrefixReference:
        return cls(prefix.source, prefix.digest, length, prefix.token_ids is None, key)

    @classmethod
    def from_params(cls, params: Mapping[str, Any] | None) -> PrefixReference | None:
        """Read ``kv_transfer_params``; ``None`` if they name no prefix.

        Check `is_signed` next: malformed ones give a reference that no key has signed.
        """
        entry = (params or {}).get(PARAMS_KEY)
        if entry is None:
            return None
        try:
            found = cls(**entry)
        except TypeError:
            return _UNSIGNED
        texts = (found.source, found.digest, found.key)
        well_formed = all(isinstance(text, str) for text in texts) and type(found.length) is int and found.length > 0
        return found if well_formed else _UNSIGNED

    def to_params(self) -> dict[str, Any]:
        """Inverse of `from_params`."""
        return {PARAMS_KEY: asdict(self)}

    def is_signed(self, engine_id: str) -> bool:
        """Whether it was made by a server with this ``engine_id``, to which replicas of one server add their rank."""
        return bool(self.key) and engine_id.startswith(self.key)

    @property
    def cache_salt(self) -> str:
        """Salt of vLLM's prefix cache: blocks are shared by requests with the same prefix, and by no others."""
        return f"{self.digest}-{self.key}"


_UNSIGNED = PrefixReference("", "", 1, True, "")


@dataclass(frozen=True)
class PrefixLoad:
    """A prefix that a worker has to write into the blocks of a request.

    Attributes:
        request_id: the request.
        reference: the prefix.
        start, stop: the positions to write; those before ``start`` are in the cache already.
        block_ids: of the request, for every group of layers.
        error: why the request is refused, or ``None``; the load then fails and nothing is written.
    """

    request_id: str
    reference: PrefixReference
    start: int
    stop: int
    block_ids: tuple[tuple[int, ...], ...]
    error: str | None = None


def slot_mapping(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of positions ``start..stop-1`` in the paged cache.

    Args:
        block_ids: of one request, in order of position.
        block_size: positions in a block.

    Returns:
        Positions that have a block (those outside a sliding window have none), and their slots; both int64.
    """
    import torch

    positions = torch.arange(start, stop)
    blocks = torch.tensor(block_ids, dtype=torch.int64)[positions // block_size]
    positions, blocks = positions[blocks != NULL_BLOCK_ID], blocks[blocks != NULL_BLOCK_ID]
    return positions, blocks * block_size + positions % block_size
