"""`ExampleEncoder`: filled templates -> `EncodedExample`, token ids and the indices whose outputs hold the answer.

Training and every request to a task encode their examples here, so that soft tokens, the mask token and special tokens
have the same positions in both.
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
    """Token ids of one example, and the indices of the tokens whose outputs are used.

    Attributes:
        token_ids: never empty; ids below 0 are soft tokens (`foreword.core.soft_id`).
        output_indices: indices into ``token_ids``. To generate or to score words: the last token of a causal model or
            of an encoder-decoder's text, the mask of a masked model. For a head: the first token of a text (in causal
            models the last), or one token of each of its words.
    """

    token_ids: tuple[int, ...]
    output_indices: tuple[int, ...]


@dataclass(frozen=True)
class ConstantPrefix:
    """The part of a template that is the same for all examples and comes first: lowering puts it into the prefix.

    Attributes:
        token_ids: of its text and its soft tokens, those as ids below 0.
        has_text: whether it has text, and with it the beginning-of-text token if the model uses one.
    """

    token_ids: tuple[int, ...]
    has_text: bool


@dataclass(frozen=True)
class ExampleEncoder:
    """Encodes filled templates for one model.

    Attributes:
        tokenizer: of the model.
        causal: False for encoders and encoder-decoders, whose texts end with special tokens (``[SEP]``, ``</s>``).
        bos: whether an example begins with the beginning-of-text token.
        num_prefix_soft_tokens: how many of the template's soft tokens are in the prefix; the template is encoded from
            behind them on.
        is_encoder_decoder: the template up to the answer is the encoder's input.
    """

    tokenizer: PreTrainedTokenizerBase
    causal: bool = True
    bos: bool = True
    num_prefix_soft_tokens: int = 0
    is_encoder_decoder: bool = False

    def encode_prompt(self, filled: FilledTemplate) -> EncodedExample:
        """Encode an example whose answer is a verbalizer's word or generated text, up to (or with the mask for) it.

        Raises:
            TemplateError: text behind an answer that is generated, or a tokenizer without a mask token.
            RequestError: there is nothing to run.
        """
        prompt = _after_soft_tokens(filled.prompt, self.num_prefix_soft_tokens)
        if not self.causal and not self.is_encoder_decoder:
            return self._encode_masked(prompt, filled.after)
        if filled.after:
            behind = filled.after[0]
            what = f"the text {behind[:20]!r}" if isinstance(behind, str) else f"{{soft:{behind.length}}}"
            raise TemplateError(
                f"{what} behind the answer is never seen by a model that writes its answers; end the template with "
                "{mask} or {target:...}."
            )
        before = self._encode(prompt)
        ids = [*before, *self._closing_ids()] if self.is_encoder_decoder else before
        return _encoded(ids, (len(ids) - 1,))

    def _encode_masked(self, prompt: Sequence[Piece], after: Sequence[Piece]) -> EncodedExample:
        """A text with a mask in it. The beginning-of-text token comes before the first text; where soft tokens stand on
        both sides of the mask and no text before it, it comes first of all."""
        mask, lead = self._mask_id(), list[int]()
        behind = sum(piece.length for piece in after if isinstance(piece, SoftSlot))
        if behind and self.bos and not any(isinstance(piece, str) for piece in prompt):
            lead += seam.special_tokens(self.tokenizer)[0]
        before = [*lead, *self._encode(prompt)]
        ahead = sum(piece.length for piece in prompt if isinstance(piece, SoftSlot))
        rest = self._continue(after, ahead)
        return _encoded([*before, mask, *rest, *self._closing_ids()], (len(before),))

    def encode_sequence(self, filled: FilledTemplate) -> EncodedExample:
        """Encode a text for sequence classification by a head, from the hidden state of the first token of an encoder
        and of the last token of a causal model."""
        ids = self._encode(_after_soft_tokens(filled.prompt, self.num_prefix_soft_tokens))
        if self.causal:
            return _encoded(ids, (len(ids) - 1,))
        first = next((at for at, token in enumerate(ids) if token >= 0), 0)
        return _encoded([*ids, *self._closing_ids()], (first,))

    def encode_words(self, words: Sequence[str], soft: int = 0) -> EncodedExample:
        """Encode words for token classification by a head, behind ``soft`` soft tokens.

        A word's hidden state is that of its first token, as is usual for encoders, and of its last token in causal
        models, where the first has not seen the word.

        Raises TemplateError for a word without tokens.
        """
        before, after = seam.special_tokens(self.tokenizer)
        ids = [*map(soft_id, range(soft)), *(before if self.bos else ())]
        output_indices = []
        for index, word in enumerate(words):
            pieces = seam.continuation_ids(self.tokenizer, f" {word}" if index else word, "")
            if not pieces:
                raise TemplateError(f"word {index + 1}, {word!r}, has no tokens; take it out.")
            output_indices.append(len(ids) + (len(pieces) - 1 if self.causal else 0))
            ids += pieces
        return _encoded(ids if self.causal else [*ids, *after], tuple(output_indices))

    def constant_prefix(self, template: Template) -> ConstantPrefix:
        """Encode everything up to the last soft token before the template's first field.

        Empty for encoders, whose soft tokens see the request and cannot be computed ahead.
        """
        pieces: tuple[Piece, ...] = template.constant_pieces if self.causal else ()
        text = any(isinstance(piece, str) for piece in pieces)
        return ConstantPrefix(tuple(self._encode(pieces, bos=text)), text)

    def _encode(self, pieces: Sequence[Piece], bos: bool | None = None) -> list[int]:
        """Token ids of text and soft tokens; the beginning-of-text token comes before the first text."""
        bos = self.bos if bos is None else bos
        first = next((at for at, piece in enumerate(pieces) if isinstance(piece, str)), len(pieces))
        ids = self._continue(pieces[:first], 0)
        if first < len(pieces):
            ids += seam.encode(self.tokenizer, str(pieces[first]), bos=bos)
        soft = sum(token < 0 for token in ids)
        return ids + self._continue(pieces[first + 1 :], soft)

    def _continue(self, pieces: Sequence[Piece], soft: int) -> list[int]:
        """Token ids of pieces that go on behind others, ``soft`` soft tokens among them."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, SoftSlot):
                ids += map(soft_id, range(soft, soft + piece.length))
                soft += piece.length
            else:
                ids += seam.continuation_ids(self.tokenizer, piece, "")
        return ids

    def _closing_ids(self) -> tuple[int, ...]:
        """The special tokens that end a text."""
        return seam.special_tokens(self.tokenizer)[1]

    def _mask_id(self) -> int:
        mask = getattr(self.tokenizer, "mask_token_id", None)
        if mask is None:
            raise TemplateError(
                "the tokenizer of this encoder has no mask token, so it cannot choose a word; learn with --head linear."
            )
        return int(mask)


def _after_soft_tokens(pieces: Sequence[Piece], count: int) -> Sequence[Piece]:
    """The pieces behind the first ``count`` soft tokens, the last of which must end a slot."""
    passed = 0
    for index, piece in enumerate(pieces):
        if passed == count:
            return pieces[index:]
        passed += piece.length if isinstance(piece, SoftSlot) else 0
    if passed != count:
        raise TemplateError(f"the template has {passed} soft tokens, {count} of them are said to be in the prefix.")
    return ()


def _encoded(ids: Sequence[int], output_indices: tuple[int, ...]) -> EncodedExample:
    if not ids:
        raise RequestError("the request is empty, so there is nothing to continue; send at least one token.")
    return EncodedExample(tuple(ids), output_indices)
