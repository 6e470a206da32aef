"""A request to a task -> its `Prompt`: which positions of the task's prefix it uses, and which token ids are run.

Server, evaluation and command line build their prompts here, so that the same input gives the same tokens in all of
them. ``task=None`` is the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from foreword.core import Kind, Task
from foreword.errors import RequestError, TemplateError, UnsupportedOption, UsageError
from foreword.text import chat, distilled_text, seam
from foreword.text.encoded_example import EncodedExample, ExampleEncoder
from foreword.text.prompt import Prompt
from foreword.text.template import Template
from foreword.text.tool_formats import ToolFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelKind(TypedDict):
    """What a prompt's making depends on of its model, as an engine has it."""

    causal: bool
    is_encoder_decoder: bool


def from_text(
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    text: str,
    *,
    causal: bool = True,
    is_encoder_decoder: bool = False,
) -> Prompt:
    """The text verbatim behind the task's prefix.

    A task that labels takes it verbatim if it is worded as the task's template up to the answer; any other text is put
    into the template's only field, since words of labels behind it would mean nothing. So is every text for a task of
    an encoder-decoder with a template: its encoder reads the template as a whole, and nothing is continued.

    Raises RequestError if there is nothing to run, or for a text that a template of several fields would take.
    """
    if is_encoder_decoder:
        return _encoder_prompt(tokenizer, task, text)
    if task is not None and answers_label(task) and not _is_worded(task, text, causal):
        return from_fields(tokenizer, task, {_label_field(task): text}, causal=causal)
    if task is not None and distilled_text.stands_for_text(task):
        return _continuation_prompt(task, distilled_text.encode_continuation(tokenizer, task, text))
    if task is None or not _is_static(task):
        return _continuation_prompt(task, seam.encode(tokenizer, text, bos=_request_has_bos(task)))
    if task.kind == "system":
        return _static_slice_prompt(
            task, chat.encode(tokenizer, chat.system_text(tokenizer, _static_text(task)) + text)
        )
    return _static_slice_prompt(task, seam.encode(tokenizer, _static_text(task) + text, bos=task.prefix.bos != "none"))


def from_fields(
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    inputs: Mapping[str, object],
    *,
    causal: bool = True,
    is_encoder_decoder: bool = False,
) -> Prompt:
    """The task's template filled with named values, up to the answer.

    Args:
        causal: False for a task of an encoder or an encoder-decoder.
        is_encoder_decoder: True for a task of an encoder-decoder.

    Raises TemplateError if the task has no template or a field is missing.
    """
    if task is None or task.template is None:
        name = "the base model" if task is None else f"task '{task.name}'"
        raise TemplateError(f"{name} has no template for fields; send the text itself, or ask a task with a template.")
    template = Template.parse(task.template)
    encoder = example_encoder(tokenizer, task, template, causal, is_encoder_decoder)
    inner_soft = template.num_inner_soft_tokens(causal)
    if task.head is not None and task.head.per_token:
        words = encoder.encode_words(field_words(template, inputs), inner_soft)
        return _whole_prefix_prompt(task, words, inner_soft)
    filled = template.fill(inputs, "inputs", answer=False)
    if _is_static(task):
        return from_text(tokenizer, task, filled.text)
    example = encoder.encode_sequence(filled) if task.head is not None else encoder.encode_prompt(filled)
    return _whole_prefix_prompt(task, example, inner_soft)


def example_encoder(
    tokenizer: PreTrainedTokenizerBase, task: Task, template: Template, causal: bool, is_encoder_decoder: bool = False
) -> ExampleEncoder:
    """The encoder of a task's examples; soft tokens in front of the template are in the prefix already."""
    in_prefix = template.num_soft_tokens - template.num_inner_soft_tokens(causal)
    return ExampleEncoder(tokenizer, causal, _request_has_bos(task), in_prefix, is_encoder_decoder)


def field_words(template: Template, values: Mapping[str, object], where: str = "inputs") -> list[str]:
    """The words of the one field of a tagging template: a list of texts, or a text that is cut at white space."""
    field = template.single_field()
    value = values.get(field)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list | tuple) or not value or not all(isinstance(word, str) for word in value):
        raise TemplateError(f"{where}: field '{field}' must be a list of words, found {type(value).__name__}.")
    return list(value)


def from_messages(
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    messages: Sequence[Mapping[str, object]],
    *,
    causal: bool = True,
    is_encoder_decoder: bool = False,
    answer_prefix: str = "",
    **options: Unpack[chat.RenderOptions],
) -> Prompt:
    """A conversation, through the task's template if that has one field, else the chat template.

    Args:
        causal: False for a task of an encoder or an encoder-decoder.
        is_encoder_decoder: True for a task of an encoder-decoder.
        answer_prefix: a beginning of the answer, behind the rendered conversation.
        options: of the chat template.

    Raises RequestError for messages that do not fit, also to a template of several fields; TemplateError if the
    tokenizer has no chat template.
    """
    require_chat(task)
    fields = _fields(task)
    if task is not None and fields:
        _refuse_chat_options(task, options)
        inputs = {fields[0]: _single_user_text(task, messages)}
        return from_fields(tokenizer, task, inputs, causal=causal, is_encoder_decoder=is_encoder_decoder)
    if task is not None and _is_static(task):
        rendered = _static_chat_text(tokenizer, task, messages, options) + answer_prefix
        if task.kind == "system":
            return _static_slice_prompt(task, chat.encode(tokenizer, rendered))
        ids = seam.encode(tokenizer, _static_text(task) + rendered, bos=task.prefix.bos != "none")
        return _static_slice_prompt(task, ids)
    if task is not None and distilled_text.stands_for_text(task):
        return _continuation_prompt(
            task,
            distilled_text.encode_conversation(tokenizer, task, messages, answer_prefix=answer_prefix, **options),
        )
    rendered = chat.render(tokenizer, messages, **options) + answer_prefix
    return _continuation_prompt(task, chat.encode(tokenizer, rendered, bos=_request_has_bos(task)))


def tool_format(
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    messages: Sequence[Mapping[str, object]],
    **options: Unpack[chat.RenderOptions],
) -> ToolFormat:
    """The format in which calls will stand in the answer to what `from_messages` makes of the same arguments.

    Raises UnsupportedOption for a task that puts a message into its own template.
    """
    if task is not None and _fields(task):
        _refuse_chat_options(task, options)
    if task is not None and distilled_text.stands_for_text(task):
        return distilled_text.tool_format(tokenizer, task, messages, **options)
    system = _static_text(task) if task is not None and _is_static(task) and task.kind == "system" else None
    return chat.tool_format(tokenizer, messages, system=system, **options)


def from_rendered(tokenizer: PreTrainedTokenizerBase, task: Task, token_ids: Sequence[int]) -> Prompt:
    """Token ids of a conversation already rendered by the model's chat template, a system task's turn included."""
    if _is_static(task):
        return _static_slice_prompt(task, token_ids)
    leading = list(seam.special_tokens(tokenizer)[0])
    ids = list(token_ids)
    if task.kind == "system" and distilled_text.stands_for_text(task):
        return _continuation_prompt(
            task, ids[seam.common_prefix_length(static_token_ids(tokenizer, "system", _static_text(task)), ids) :]
        )
    bare = ids[len(leading) :] if ids[: len(leading)] == leading else ids
    return _continuation_prompt(task, [*leading, *bare] if _request_has_bos(task) else bare)


def takes_one_message(task: Task | None) -> bool:
    """Whether the task puts a single message into its template, and so takes no conversation."""
    return len(_fields(task)) == 1


def from_ids(
    task: Task | None, token_ids: Sequence[int], *, causal: bool = True, is_encoder_decoder: bool = False
) -> Prompt:
    """Token ids behind the whole prefix. Raises RequestError if there is nothing to run."""
    if task is not None and not causal and not is_encoder_decoder:
        raise RequestError(f"task '{task.name}' is of an encoder and needs its mask; send a text or inputs.")
    if token_ids and min(token_ids) < 0:
        raise RequestError(f"token id {min(token_ids)} is below 0; send ids of the tokenizer.")
    if task is None or task.prefix.token_ids is None:
        return _continuation_prompt(task, token_ids, causal=causal)
    return _static_slice_prompt(task, [*task.prefix.token_ids, *token_ids])


def answers_label(task: Task) -> bool:
    """Whether a request to the task is answered by the word of a label: it has a verbalizer, and no head."""
    return bool(task.verbalizer) and task.head is None and task.template is not None


def require_generation(task: Task | None) -> None:
    """Raise RequestError for a task that answers no request with text: one with a head."""
    if task is None or (task.head is None and (not task.members or answers_label(task))):
        return
    if task.head is not None and task.head.per_token:
        raise RequestError(
            f"task '{task.name}' tags words and writes no text; ask /v1/tag, or run foreword classify {task.name}."
        )
    raise RequestError(
        f"task '{task.name}' labels texts and writes none; ask /v1/classify, or run foreword classify {task.name}."
    )


def require_chat(task: Task | None) -> None:
    """Raise RequestError for a task that takes no messages: one that writes nothing, or whose template has several
    fields."""
    require_generation(task)
    fields = _fields(task)
    if task is not None and len(fields) > 1:
        raise RequestError(
            f"task '{task.name}' fills the fields {_listed(fields)}; send inputs to /v1/completions, or --field "
            "name=value to foreword generate."
        )


def static_token_ids(tokenizer: PreTrainedTokenizerBase, kind: Kind, text: str) -> tuple[int, ...]:
    """The token ids that the prefix of a static task is computed from when it is published.

    Raises UsageError for an empty text or a learned task, TemplateError if a system turn cannot be rendered.
    """
    if kind == "learned":
        raise UsageError("a learned task has no text to compute its prefix from; use kind 'system' or 'prompt'.")
    if not text:
        raise UsageError("the text of a static task is empty; give it at least one character.")
    if kind == "system" and not getattr(tokenizer, "chat_template", None):
        raise TemplateError(
            "the model has no chat template, so it has no system turns; publish the text as one that stands in front: "
            "--text in place of --system, 'prompt' in place of 'system'."
        )
    if kind == "system":
        return tuple(chat.encode(tokenizer, chat.system_text(tokenizer, text)))
    return tuple(seam.encode(tokenizer, text, bos=True))


def _whole_prefix_prompt(task: Task, example: EncodedExample, inner: int = 0) -> Prompt:
    """An example behind the whole prefix of a task, with its last ``inner`` soft tokens inside."""
    soft = None
    if inner:
        have = len(task.soft) if task.soft is not None else 0
        if task.soft is None or have < inner:
            raise TemplateError(f"the template of task '{task.name}' has {inner} soft tokens in it, the task {have}.")
        soft = task.soft[have - inner :]
    prefix = task.prefix if task.prefix.length else None
    return Prompt(example.token_ids, prefix, task.prefix.length, example.output_indices, soft, task.adapter)


def _is_static(task: Task) -> bool:
    return task.prefix.token_ids is not None


def _request_has_bos(task: Task | None) -> bool:
    if task is None:
        return True
    # An empty prefix cannot hold the beginning-of-text token, so there it is always the request's.
    return task.prefix.bos == "request" or (task.prefix.length == 0 and task.prefix.bos == "prefix")


def _encoder_prompt(tokenizer: PreTrainedTokenizerBase, task: Task | None, text: str) -> Prompt:
    """A text in the only field of the task's template, or by itself as the encoder was trained to read it."""
    if task is not None and task.template is not None:
        inputs = {_label_field(task): text}
        return from_fields(tokenizer, task, inputs, causal=False, is_encoder_decoder=True)
    ids = [*seam.encode(tokenizer, text, bos=True), *seam.special_tokens(tokenizer)[1]]
    return _continuation_prompt(task, ids, causal=False)


def _continuation_prompt(task: Task | None, token_ids: Sequence[int], *, causal: bool = True) -> Prompt:
    """Token ids behind the whole prefix of a task, outside its template."""
    if not token_ids:
        raise RequestError("the request is empty, so there is nothing to continue; send at least one token.")
    if task is None:
        return Prompt(tuple(token_ids), None, 0)
    if task.template is not None and Template.parse(task.template).num_inner_soft_tokens(causal):
        raise RequestError(
            f"task '{task.name}' has soft tokens inside its template, so it takes fields and no bare text; send "
            "inputs for its fields."
        )
    return _whole_prefix_prompt(task, EncodedExample(tuple(token_ids), (len(token_ids) - 1,)))


def _static_slice_prompt(task: Task, joined_ids: Sequence[int]) -> Prompt:
    """The ids of a static task's text and a request together, behind as much of the prefix as they share with it."""
    reused, rest = seam.match_prefix(task.prefix.token_ids or (), joined_ids)
    if reused < task.prefix.min_length:  # states hold the whole text, so where the tokens differ the joined text is run
        reused, rest = 0, list(joined_ids)
    return Prompt(tuple(rest), task.prefix if reused else None, reused, adapter=task.adapter)


def _static_text(task: Task) -> str:
    if task.text is None:
        raise RequestError(
            f"task '{task.name}' has a static prefix without its text, so no text can be joined to it; send "
            "token ids, or publish it again with --text or --system."
        )
    return task.text


def _static_chat_text(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    messages: Sequence[Mapping[str, object]],
    options: chat.RenderOptions,
) -> str:
    if task.kind == "system":
        return chat.render(tokenizer, messages, system=_static_text(task), **options)
    return chat.without_bos(tokenizer, chat.render(tokenizer, messages, **options))


_OPTION_NAMES = {"template_kwargs": "chat_template_kwargs"}


def _refuse_chat_options(task: Task, options: chat.RenderOptions) -> None:
    """Raise UnsupportedOption for what a task with a template of its own cannot honour."""
    given = [name for name in ("tools", "template_kwargs", "continue_final_message") if options.get(name)]
    if options.get("add_generation_prompt") is False:
        given.append("add_generation_prompt")
    if given:
        name = _OPTION_NAMES.get(given[0], given[0])
        raise UnsupportedOption(
            f"{name} is not supported by task '{task.name}', which puts one message into its own template, and the "
            f"model's chat template is not used; leave {name} out."
        )


def _fields(task: Task | None) -> tuple[str, ...]:
    """The fields that a bare text has to fill: the only one that is not optional, or else all."""
    if task is None or task.template is None:
        return ()
    template = Template.parse(task.template)
    return template.fields if template.text_field is None else (template.text_field,)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _is_worded(task: Task, text: str, causal: bool) -> bool:
    """Whether a text is a filled template of a task that labels, as far as a text can be."""
    template = Template.parse(task.template or "")
    return causal and not template.num_inner_soft_tokens(causal) and template.words(text)


def _label_field(task: Task) -> str:
    fields = _fields(task)
    if len(fields) == 1:
        return fields[0]
    raise RequestError(
        f"task '{task.name}' fills the fields {_listed(fields)}; send inputs for them (--field name=value), or a text "
        "worded as its template up to the label."
        if fields
        else f"the template of task '{task.name}' takes no text; send it as it stands."
    )


def _single_user_text(task: Task, messages: Sequence[Mapping[str, object]]) -> str:
    turns = chat.validate_messages(messages)
    if len(turns) != 1 or turns[0]["role"] != "user":
        roles = ", ".join(turn["role"] for turn in turns)
        raise RequestError(
            f"task '{task.name}' answers one user message through its template, got {len(turns)} ({roles}); "
            "send only the message to answer."
        )
    return turns[0]["content"]
