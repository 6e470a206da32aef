"""`tokenizer_fingerprint`: tells whether a prefix was made with this tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

PROBE = "Hello, world!  1234 naïve café\n\tfunction(x) 你好，世界。 Привет 🙂 <|im_start|> </s> [MASK]"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary, the special tokens and the ids of a text with many scripts.

    The serialized tokenizer is not used: it changes between releases of the library for the same ids.
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = sorted((str(k), str(v)) for k, v in tokenizer.special_tokens_map.items())
    probe = tokenizer(PROBE).input_ids
    return hashlib.sha256(json.dumps([vocabulary, special, probe]).encode()).hexdigest()
