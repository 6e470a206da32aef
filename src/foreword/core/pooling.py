"""`Pooling`: which of a text's final hidden states its embedding is made of."""

from __future__ import annotations

from typing import Literal

Pooling = Literal["last", "mean", "cls"]
"""The last token's, the mean of all tokens', or the first token's (``[CLS]``), as in sentence-transformers."""
