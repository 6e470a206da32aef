"""Options that are not built: taken at the values that change nothing, and refused with a reason at others."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from foreword.server.schema import TaskRequestBody


def unsupported(*neutral: object, why: str = "") -> AfterValidator:
    """Refuse an option unless it is absent, null, or has a value that changes nothing.

    Args:
        why: the reason, a clause.
    """

    def check(value: object) -> object:
        # Compared with their types, because 0 == False in Python and not in JSON; 1 and 1.0 are one number there.
        if value is None or any(_kind(value) is _kind(each) and value == each for each in neutral):
            return value
        raise PydanticCustomError("unsupported_parameter", "is not supported{reason}; leave it out", {"reason": reason})

    reason = f": {why}" if why else ""
    return AfterValidator(check)


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)


_BEAMS = "answers are sampled token by token; ask for n answers"
_SAMPLERS = "this way of sampling is not built; use top_p, top_k or min_p"
_PROMPT = "the task and the chat template decide what the prompt is"
_VLLM = "it steers the inside of vLLM"


class NeutralOptions(TaskRequestBody):
    """Options of OpenAI, vLLM, llama.cpp and their clients; the first five are hints, which change no answer."""

    store: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    cache_prompt: Any = None
    spaces_between_special_tokens: Any = None
    use_beam_search: Annotated[Any, unsupported(False, why=_BEAMS)] = None
    length_penalty: Annotated[Any, unsupported(1.0, why=_BEAMS)] = None
    early_stopping: Annotated[Any, unsupported(False, why=_BEAMS)] = None
    typical_p: Annotated[Any, unsupported(1.0, why=_SAMPLERS)] = None
    top_a: Annotated[Any, unsupported(0.0, why=_SAMPLERS)] = None
    tfs_z: Annotated[Any, unsupported(1.0, why=_SAMPLERS)] = None
    mirostat: Annotated[Any, unsupported(0, why=_SAMPLERS)] = None
    allowed_token_ids: Annotated[Any, unsupported(why="use structured_outputs, or logit_bias")] = None
    bad_words: Annotated[Any, unsupported([], why="use logit_bias")] = None
    prompt_logprobs: Annotated[Any, unsupported(why="ask /v1/completions with echo and logprobs")] = None
    return_tokens_as_token_ids: Annotated[Any, unsupported(False, why="use return_token_ids")] = None
    truncate_prompt_tokens: Annotated[Any, unsupported(why="a cut prompt asks something else; shorten it")] = None
    priority: Annotated[Any, unsupported(0, why="requests take turns by task")] = None
    request_id: Annotated[Any, unsupported(why="send the header X-Request-ID")] = None
    kv_transfer_params: Annotated[Any, unsupported({}, why=_VLLM)] = None
    vllm_xargs: Annotated[Any, unsupported({}, why=_VLLM)] = None
    guided_decoding_backend: Annotated[Any, unsupported("auto", why="constraints are compiled by llguidance")] = None
    guided_whitespace_pattern: Annotated[Any, unsupported(why="white space in JSON is fixed")] = None
    guided_grammar: Annotated[Any, unsupported("", why="write a JSON schema, a regex or a choice")] = None
    prompt_embeds: Annotated[Any, unsupported(why="send text or token ids")] = None


class NeutralChatOptions(NeutralOptions):
    """Options of conversations alone."""

    audio: Annotated[Any, unsupported(why="the model writes text")] = None
    modalities: Annotated[Any, unsupported(["text"], why="the model writes text")] = None
    moderation: Annotated[Any, unsupported(why="no moderation model runs here; ask one before and after")] = None
    prediction: Annotated[Any, unsupported(why="answers are not compared with a predicted one")] = None
    web_search_options: Annotated[Any, unsupported(why="nothing is searched here; offer a tool for it")] = None
    documents: Annotated[Any, unsupported([], why="write documents into a message")] = None
    chat_template: Annotated[Any, unsupported(why="the model's own chat template is used")] = None
    chat_template_content_format: Annotated[Any, unsupported("auto", "string", why=_PROMPT)] = None
    mm_processor_kwargs: Annotated[Any, unsupported({}, why="the model reads text")] = None
    add_special_tokens: Annotated[Any, unsupported(False, why=_PROMPT)] = None
    echo: Annotated[Any, unsupported(False, why="ask /v1/completions")] = None
    suffix: Annotated[Any, unsupported("", why="text is not filled in between")] = None
    include_reasoning: Annotated[Any, unsupported(True, why="thoughts are part of the answer's text")] = None


class NeutralTextOptions(NeutralOptions):
    """Options of ``/v1/completions`` alone."""

    suffix: Annotated[Any, unsupported("", why="text is not filled in between; put all of it into prompt")] = None
    add_special_tokens: Annotated[Any, unsupported(True, why="send token ids for a prompt without them")] = None
    response_format: Annotated[Any, unsupported({"type": "text"}, why="send structured_outputs")] = None
