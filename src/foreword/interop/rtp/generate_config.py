"""`GenerateConfig`: rtp-llm's ``generate_config``, checked, as `SamplingParams`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, get_type_hints

from pydantic import Field

from foreword.bank.json_document import Count, FieldCheck, is_a
from foreword.core import SamplingParams
from foreword.errors import RequestError, UnsupportedOption
from foreword.text.detokenize import REPLACEMENT_CHARACTER


def _at_least(low: int) -> FieldCheck:
    return f"a whole number, {low} or more", is_a(Annotated[int, Field(ge=low)])


def _number(low: float, high: float) -> FieldCheck:
    return f"a number from {low:g} to {high:g}", is_a(Annotated[float, Field(ge=low, le=high)])


_FLAG = "true or false", is_a(bool)
_ID = "a whole number or a text", is_a(int | str | None)
_SEED = "a whole number", is_a(int | None)
_TEXTS = "a list of texts that are not empty", is_a(Sequence[Annotated[str, Field(min_length=1)]])
_IDS = "a list of lists of token ids", is_a(Sequence[Annotated[Sequence[Count], Field(min_length=1)]])


@dataclass(frozen=True)
class GenerateConfig:
    """rtp-llm's generation options, with its names and defaults.

    Attributes:
        max_new_tokens: maximum tokens; cut to the room in the context, as rtp-llm does.
        min_new_tokens: minimum tokens before a stop token or text ends the answer.
        top_k: most probable tokens to sample from; 0 keeps all, 1 is greedy.
        top_p: probability mass to sample from; 0 is greedy.
        temperature: 0 is greedy.
        repetition_penalty: above 1 against repetition.
        random_seed: makes a sampled answer repeatable.
        stop_words_str: texts that end the answer and are no part of it.
        stop_words_list: the same as token ids; several in a row end it as the text that they are.
        num_return_sequences: answers to every prompt, returned as a list; 0 is one answer, returned as a text.
        task_id: which static prompt stands in front; ``None`` or an empty text is none.
        return_incremental: results hold only what is new.
        is_streaming: results come as answers grow; ``False`` gives the last one alone.
        yield_generator: another name of the same.
    """

    max_new_tokens: Annotated[int, _at_least(1)] = 1000
    min_new_tokens: Annotated[int, _at_least(0)] = 0
    top_k: Annotated[int, _at_least(0)] = 0
    top_p: Annotated[float, _number(0, 1)] = 1.0
    temperature: Annotated[float, _number(0, 100)] = 1.0
    repetition_penalty: Annotated[float, _number(0.01, 100)] = 1.0
    random_seed: Annotated[int | None, _SEED] = None
    stop_words_str: Annotated[Sequence[str], _TEXTS] = ()
    stop_words_list: Annotated[Sequence[Sequence[int]], _IDS] = ()
    num_return_sequences: Annotated[int, _at_least(0)] = 0
    task_id: Annotated[int | str | None, _ID] = None
    return_incremental: Annotated[bool, _FLAG] = False
    is_streaming: Annotated[bool, _FLAG] = True
    yield_generator: Annotated[bool, _FLAG] = True

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> GenerateConfig:
        """Options as a user wrote them.

        Raises:
            UnsupportedOption: one would change the answer and is not supported.
            RequestError: one is unknown or out of range.
        """
        known = {}
        for name, value in options.items():
            if name in _CHECKS:
                known[name] = _check(name, value)
            elif name in _REFUSED:
                _check_default(name, value)
            elif name not in _IGNORED:
                raise RequestError(_unknown(name))
        config = cls(**known)
        if config.min_new_tokens > config.max_new_tokens:
            raise RequestError(
                f"min_new_tokens {config.min_new_tokens} is more than max_new_tokens {config.max_new_tokens}; lower it."
            )
        return config

    @property
    def streaming(self) -> bool:
        return self.is_streaming and self.yield_generator

    @property
    def task(self) -> str | None:
        """The name of the static prompt; 1 and ``"1"`` are the same."""
        return None if self.task_id in (None, "") else str(self.task_id)

    def sampling_params(self, tokenizer: Any, fitting: Callable[[int], int]) -> SamplingParams:
        """These options as `SamplingParams`.

        Args:
            tokenizer: decodes stop sequences of several ids.
            fitting: caps a number of tokens to what fits behind the prompt.
        """
        max_tokens = fitting(self.max_new_tokens)
        greedy = self.top_k == 1 or self.top_p == 0 or self.temperature == 0
        sequences = [ids for ids in self.stop_words_list if len(ids) > 1]
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min(self.min_new_tokens, max_tokens),
            temperature=0.0 if greedy else self.temperature,
            top_k=0 if greedy else self.top_k,
            top_p=1.0 if greedy else self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.random_seed,
            stop=(*self.stop_words_str, *(_decode_stop(tokenizer, ids) for ids in sequences)),
            stop_token_ids=tuple(ids[0] for ids in self.stop_words_list if len(ids) == 1),
        )


_CHECKS = {name: hint.__metadata__[0] for name, hint in get_type_hints(GenerateConfig, include_extras=True).items()}
"""A check for every option."""

_REFUSED: Mapping[str, Any] = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "top_p_decay": None,
    "top_p_min": None,
    "top_p_reset_ids": None,
    "bad_words_list": [],
    "eos_token_id": None,
    "print_stop_words": False,
    "calculate_loss": 0,
    "return_logits": False,
    "output_logits": False,
    "return_hidden_states": False,
    "output_hidden_states": False,
    "return_input_ids": False,
    "return_output_ids": False,
    "return_cum_log_probs": False,
    "return_all_probs": False,
    "return_softmax_probs": False,
    "select_tokens_str": [],
    "select_tokens_id": [],
    "adapter_name": None,
    "timeout_ms": -1,
    "request_format": "raw",
    "images": [],
    "urls": [],
}
"""Unsupported options of rtp-llm, with the values at which they have no effect."""

_IGNORED = frozenset({"bos_token_id", "chat_id", "max_input_tokens", "pad_token_id", "using_hf_sampling"})
"""Options of rtp-llm that have no effect on answers."""


def _check(name: str, value: Any) -> Any:
    expected, fits = _CHECKS[name]
    if not fits(value):
        raise RequestError(f"{name} must be {expected}, the same for all prompts of a call, found {value!r}.")
    return value


def _check_default(name: str, value: Any) -> None:
    if value is not None and value != _REFUSED[name]:
        raise UnsupportedOption(f"{name}={value!r} is not supported and would change the answer; leave it out.")


def _unknown(name: str) -> str:
    near = get_close_matches(name, [*_CHECKS, *_REFUSED, *_IGNORED], n=1)
    mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(_CHECKS)}."
    return f"generate_config has no option {name}; {mend}"


def _decode_stop(tokenizer: Any, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if not text or REPLACEMENT_CHARACTER in text:
        raise RequestError(
            f"stop_words_list has {list(ids)}, which is no text that an answer could hold; give a text in "
            "stop_words_str, or one id by itself."
        )
    return text
