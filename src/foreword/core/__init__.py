"""The nouns that every room may import, one a file.

Torch is imported for type checkers only, so that reading a bank's index or printing help stays quick.
"""

from foreword.core.adapter import Adapter, LowRank
from foreword.core.batch import Batch, Front, gather_embeds, soft_id
from foreword.core.constraint import Constraint
from foreword.core.head import Head, ProblemType
from foreword.core.identity import LayerShape, ModelIdentity, StateShape
from foreword.core.pooling import Pooling
from foreword.core.prefix import Bos, KVPrefix
from foreword.core.sampling import MAX_LOGPROBS, REQUEST_ONLY_PARAMS, SamplingParams
from foreword.core.task import Combine, Kind, Task

__all__ = [
    "MAX_LOGPROBS",
    "REQUEST_ONLY_PARAMS",
    "Adapter",
    "Batch",
    "Bos",
    "Combine",
    "Constraint",
    "Front",
    "Head",
    "KVPrefix",
    "Kind",
    "LayerShape",
    "LowRank",
    "ModelIdentity",
    "Pooling",
    "ProblemType",
    "SamplingParams",
    "StateShape",
    "Task",
    "gather_embeds",
    "soft_id",
]
