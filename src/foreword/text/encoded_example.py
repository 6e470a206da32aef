"""`EncodedExample`: the tokens that are run for one example, and where in them its answer is read.

`ExampleEncoder` makes them from filled templates. Training and every request to a task come through here, so that soft
tokens, the mask of a masked model and special tokens stand at the same places in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreword.core import soft_id
from foreword.errors import RequestError, TemplateError
from foreword.text import seam
from foreword.text.template import FilledTemplate, SoftSlot, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Piece = str | SoftSlot


@dataclass(frozen=True)
class EncodedExample:
    """Tokens to run, and where to look.

    Attributes:
        token_ids: never empty; ids below 0 are soft tokens (`foreword.core.soft_id`).
        places: where in ``token_ids`` answers are read: the last token of a causal model, the mask of a masked one,
            the first token of a text (the last in causal models), or one of each of its words, for a head. The last
            token is also where the decoder of an encoder-decoder begins.
    """

    token_ids: tuple[int, ...]
    output_indices: tuple[int, ...]


@dataclass(frozen=True)
class ConstantPrefix:
    """The constant beginning of a template: it is lowered into the prefix.

    Attributes:
        token_ids: its text and its soft tokens, those as ids below 0.
        has_text: the beginning-of-text token, if the model has one, is inside.
    """

    token_ids: tuple[int, ...]
    has_text: bool


@dataclass(frozen=True)
class ExampleEncoder:
    """How filled templates become questions for one model.

    Attributes:
        tokenizer: of the model.
        causal: False for encoders, whose rows are closed by their special tokens.
        bos: whether a row brings the beginning-of-text token.
        lead: how many of the template's soft tokens are part of the prefix.
        decoder: an encoder-decoder, which reads the text up to the answer as a whole text.
    """

    tokenizer: PreTrainedTokenizerBase
    causal: bool = True
    bos: bool = True
    num_prefix_soft_tokens: int = 0
    is_encoder_decoder: bool = False

    def encode_prompt(self, filled: FilledTemplate) -> EncodedExample:
        """A row whose answer is a word or a text.

        Raises:
            TemplateError: text behind an answer that is written, or a model without a mask token.
            RequestError: there is nothing to run.
        """
        before = self._encode(_after_soft_tokens(filled.prompt, self.num_prefix_soft_tokens))
        if not self.causal and not self.is_encoder_decoder:
            mask = self._mask_id()
            after = seam.continuation_ids(self.tokenizer, filled.after, "") if filled.after else []
            return _encoded([*before, mask, *after, *self._end()], (len(before),))
        if filled.after:
            raise TemplateError(
                f"the text {filled.after[:20]!r} behind the answer is never seen by a model that writes its answers; "
                "end the template with {mask} or {target:...}."
            )
        ids = [*before, *self._end()] if self.is_encoder_decoder else before
        return _encoded(ids, (len(ids) - 1,))

    def encode_sequence(self, filled: FilledTemplate) -> EncodedExample:
        """A row whose one hidden state is labelled: of the first token for encoders, of the last for causal models."""
        pieces = _after_soft_tokens(filled.prompt, self.num_prefix_soft_tokens)
        ids = self._encode(pieces)
        if self.causal:
            return _encoded(ids, (len(ids) - 1,))
        first = next((at for at, token in enumerate(ids) if token >= 0), 0)
        return _encoded([*ids, *self._end()], (first,))

    def encode_words(self, words: Sequence[str], soft: int = 0) -> EncodedExample:
        """A row of words, behind ``soft`` soft tokens. Labelled is the state of each word's first token, as is usual
        for encoders, and of its last one in causal models, where the first has not seen the word.

        Raises TemplateError for a word without tokens.
        """
        before, after = seam.special_tokens(self.tokenizer)
        ids = [*map(soft_id, range(soft)), *(before if self.bos else ())]
        places = []
        for index, word in enumerate(words):
            pieces = seam.continuation_ids(self.tokenizer, f" {word}" if index else word, "")
            if not pieces:
                raise TemplateError(f"word {index + 1}, {word!r}, has no tokens; take it out.")
            places.append(len(ids) + (len(pieces) - 1 if self.causal else 0))
            ids += pieces
        return _encoded(ids if self.causal else [*ids, *after], tuple(places))

    def constant_prefix(self, template: Template) -> ConstantPrefix:
        """The lead of a template: everything up to the last soft token before its first field.

        Empty for encoders, whose soft tokens see the request and cannot be computed ahead.
        """
        pieces: tuple[Piece, ...] = template.constant_pieces if self.causal else ()
        text = any(isinstance(piece, str) for piece in pieces)
        return ConstantPrefix(tuple(self._encode(pieces, bos=text)), text)

    def _encode(self, pieces: Sequence[Piece], bos: bool | None = None) -> list[int]:
        """Ids of text and soft tokens; the beginning-of-text token stands in front of the first text."""
        bos = self.bos if bos is None else bos
        ids: list[int] = []
        soft, started = 0, False
        for piece in pieces:
            if isinstance(piece, SoftSlot):
                ids += map(soft_id, range(soft, soft + piece.length))
                soft += piece.length
            elif started:
                ids += seam.continuation_ids(self.tokenizer, piece, "")
            else:
                ids += seam.encode(self.tokenizer, piece, bos=bos)
                started = True
        return ids

    def _end(self) -> tuple[int, ...]:
        """The special tokens that close a whole text."""
        return seam.special_tokens(self.tokenizer)[1]

    def _mask_id(self) -> int:
        mask = getattr(self.tokenizer, "mask_token_id", None)
        if mask is None:
            raise TemplateError(
                "the tokenizer of this encoder has no mask token, so it cannot choose a word; learn with --head linear."
            )
        return int(mask)


def _after_soft_tokens(pieces: Sequence[Piece], lead: int) -> Sequence[Piece]:
    """What stands behind the first ``lead`` soft tokens, which end at the end of a slot."""
    passed = 0
    for index, piece in enumerate(pieces):
        if passed == lead:
            return pieces[index:] if lead else pieces
        passed += piece.length if isinstance(piece, SoftSlot) else 0
    if passed != lead:
        raise TemplateError(f"the template has {passed} soft tokens, {lead} of them are said to be in the prefix.")
    return pieces[len(pieces) :] if lead else pieces


def _encoded(ids: Sequence[int], places: tuple[int, ...]) -> EncodedExample:
    if not ids:
        raise RequestError("the request is empty, so there is nothing to continue; send at least one token.")
    return EncodedExample(tuple(ids), places)
