"""`TaskEndpoint`: tasks as models of stock ``vllm serve``.

Chat, completions and the list of models are taken over, everything else of vLLM's server stays as it is. A request
that names a task becomes one for vLLM itself, with the task's tokens in front and a note for the connector; templates,
tools, streaming and sampling are vLLM's own.
"""

from __future__ import annotations

import json
import secrets
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.errors import ForewordError, RequestError, UnsupportedOption
from foreword.models.model_info import ModelInfo, model_info
from foreword.server.operations.auth import Caller
from foreword.server.operations.error_handlers import error_response
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.table import TaskTable
from foreword.text import request as asking
from foreword.text.request import Prompt
from foreword.vllm import compat
from foreword.vllm.connector import PREFIX_BYTES
from foreword.vllm.lora_folders import LoRAFolders
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder
from foreword.vllm.response_rewriter import ResponseRewriter

# Options that would change what stands in the places of the prefix, or show it.
_REFUSED_BY_ALL = ("kv_transfer_params",)
_REFUSED_BY_TASKS = ("cache_salt", "echo", "use_beam_search", "prompt_embeds", "truncate_prompt_tokens", "suffix")
_REFUSED_BY_LEARNED = ("prompt_logprobs", "skip_reading_prefix_cache")
# Options of the chat template, which tasks with a text or a template of their own do not go through.
_REFUSED_BY_TEXTS = ("tools", "documents", "chat_template", "chat_template_kwargs", "continue_final_message")
_STATE = "foreword"


class TaskEndpoint:
    """An endpoint plugin of vLLM; ``VLLM_PLUGINS=foreword`` lets it in."""

    name = "foreword"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Take over three routes."""
        checks = [Depends(compat.validate_json_request)]

        @app.post("/v1/chat/completions", dependencies=checks)
        async def chat(request: compat.ChatCompletionRequest, raw_request: Request) -> Response:
            return await _answered(raw_request, request, compat.create_chat_completion)

        @app.post("/v1/completions", dependencies=checks)
        async def complete(request: compat.CompletionRequest, raw_request: Request) -> Response:
            return await _answered(raw_request, request, compat.create_completion)

        @app.get("/v1/models")
        async def models(raw_request: Request) -> Response:
            shown = await compat.show_available_models(raw_request)
            served = _served(raw_request)
            return shown if served is None else await served.listed(shown)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Open the bank that the connector was given; without the connector, everything stays vLLM's own."""
        setattr(state, _STATE, None)
        config = getattr(engine_client, "vllm_config", None)
        transfer = getattr(config, "kv_transfer_config", None)
        if config is None or transfer is None or transfer.kv_connector != compat.CONNECTOR:
            return
        extra = transfer.kv_connector_extra_config
        name = state.openai_serving_models.base_model_paths[0].name
        model = config.model_config
        described = await run_in_threadpool(model_info, model.model, trust_remote_code=model.trust_remote_code)
        setattr(
            state,
            _STATE,
            TaskHandlers(name, described, extra["bank"], extra.get("prefix_bytes", PREFIX_BYTES), config, state),
        )


def _served(request: Request) -> TaskHandlers | None:
    return getattr(request.app.state, _STATE)


async def _answered(http: Request, body: Any, answer: Any) -> Response:
    served = _served(http)
    if served is None:
        return await answer(body, http)
    try:
        return await served.answer(http, body, answer)
    except ForewordError as error:
        return error_response(error)


@dataclass(frozen=True)
class _Model:
    """What the table of tasks asks of an engine."""

    name: str
    identity: Any
    loads_prefixes: bool = True


class TaskHandlers:
    """The tasks of a bank, in front of vLLM's own handlers.

    Args:
        name: under which the base model is served.
        described: the base model.
        bank: as the connector has it.
        prefix_bytes: bound of the prefixes that are kept in this process.
        config: vLLM's.
        state: of the application, with vLLM's handlers.
    """

    def __init__(self, name: str, described: ModelInfo, bank: str, prefix_bytes: int, config: Any, state: Any) -> None:
        self._base = name
        self._tokenizer = described.tokenizer
        self._models = state.openai_serving_models
        self._chat = state.openai_serving_chat
        self._front = PromptBuilder(described.tokenizer, config.kv_transfer_config.engine_id)
        self._names: dict[str, str] = {}
        self._adapters = LoRAFolders(described, config)
        model: Any = _Model(name, described.identity)
        store = Bank(bank)
        self._table = TaskTable(model, store, {}, prefix_bytes=prefix_bytes)
        self._catalogue = Catalogue(model, store, {})

    async def listed(self, shown: Response) -> Response:
        """vLLM's list of models, and the tasks behind it."""
        content = json.loads(bytes(shown.body))
        # vLLM lists every LoRA that it has, also those that only stand behind a task.
        content["data"] = [each for each in content["data"] if each["id"] not in self._names.values()]
        own = {each["id"] for each in content["data"]}
        entries = await run_in_threadpool(self._catalogue.models)
        content["data"] += [entry for entry in entries if entry["id"] not in own and entry["id"] != self._base]
        return JSONResponse(content)

    async def answer(self, http: Request, body: Any, handler: Any) -> Response:
        """vLLM's answer behind the prefix of the task that is named. Raises a ForewordError for one that cannot be."""
        _refuse(body, _REFUSED_BY_ALL, "only this server writes it")
        if body.model in self._models.lora_requests:
            return await handler(body, http)
        if body.model is None or self._models.is_base_model(body.model):
            named, body.model = body.model or self._base, self._model_of(None)
            return await ResponseRewriter(named, 0).response(await handler(body, http))
        task = await self._table.resolve(body.model, None, Caller())
        assert task is not None
        asking.require_generation(task)
        _check_options(body, task)
        named = body.model
        if isinstance(body, compat.ChatCompletionRequest):
            body.model = self._base
            prompts = [await self._conversation(task, body)]
        else:
            prompts = self._texts(task, body)
        self._put_in_front(task, body, prompts)
        body.model = self._model_of(task)
        hidden = 0 if task.prefix.token_ids is not None else task.prefix.length
        return await ResponseRewriter(named, hidden).response(await handler(body, http))

    def _texts(self, task: Task, body: Any) -> list[Prompt]:
        given = body.prompt
        if not body.add_special_tokens:
            raise UnsupportedOption("add_special_tokens is the task's own affair; leave it out, or send token ids.")
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise RequestError("prompt is missing; send a text or token ids.")
        return [
            asking.from_text(self._tokenizer, task, each) if isinstance(each, str) else asking.from_ids(task, each)
            for each in given
        ]

    async def _conversation(self, task: Task, body: Any) -> Prompt:
        """A chat, rendered by vLLM wherever the task leaves the chat template to it: tools are its own affair."""
        if _has_other_content(body.messages):
            raise UnsupportedOption("a task takes text alone in its messages; send images and audio to the base model.")
        if asking.answers_one_message(task) or task.kind == "prompt":
            _refuse(body, _REFUSED_BY_TEXTS, f"task '{task.name}' makes its text by itself")
            if not body.add_generation_prompt:
                raise UnsupportedOption(
                    f"task '{task.name}' makes its text by itself; leave add_generation_prompt out."
                )
            return asking.from_messages(self._tokenizer, task, body.messages)
        turn = [{"role": "system", "content": task.text}] if task.kind == "system" else []
        # A copy: rendering changes a request, and vLLM does so once more with the tokens that come of it.
        asked = body.model_copy(update={"messages": [*turn, *body.messages]}, deep=True)
        rendered = await self._chat.render_chat_request(asked)
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message)
        return asking.from_rendered(self._tokenizer, task, compat.token_ids(rendered[1][0]))

    def _put_in_front(self, task: Task, body: Any, prompts: Sequence[Prompt]) -> None:
        penalized = (body.repetition_penalty or 1.0) != 1.0
        # One note for all prompts of a request: any part of a static prefix is right, a learned one is used whole.
        length = min(prompt.prefix_length for prompt in prompts)
        prefix = next((prompt.prefix for prompt in prompts if prompt.prefix is not None), None) if length else None
        if penalized and len(prompts) > 1 and prefix is not None and prefix.token_ids is None:
            raise UnsupportedOption(
                "repetition_penalty behind a learned prefix takes one prompt a request; send them apart."
            )
        whole = [self._fronted(prompt, prefix, length, penalized) for prompt in prompts]
        if isinstance(body, compat.ChatCompletionRequest):
            # vLLM renders messages itself unless it finds their tokens here.
            body.kv_transfer_params = {**(whole[0].transfer or {}), "prompt_token_ids": list(whole[0].token_ids)}
        else:
            body.prompt = [list(each.token_ids) for each in whole]
            body.kv_transfer_params = whole[0].transfer
        body.cache_salt = None if whole[0].injection is None else whole[0].injection.salt

    def _fronted(self, prompt: Prompt, prefix: Any, length: int, penalized: bool) -> PrefixedPrompt:
        behind = prompt.token_ids
        if prompt.prefix is not None and prompt.prefix.token_ids is not None:
            behind = (*prompt.prefix.token_ids[length : prompt.prefix_length], *behind)
        return self._front(behind, prefix, length, penalized=penalized)

    def _model_of(self, task: Task | None) -> str:
        """The name by which vLLM answers it: the base model's, or that of a LoRA."""
        written = self._adapters.of(task.adapter if task is not None else None)
        if written is None:
            return self._base
        # By this name no client can ask for the LoRA without its prefix.
        name = self._names.setdefault(written[0], f"{written[0]}#{secrets.token_hex(16)}")
        if name not in self._models.lora_requests:
            self._models.lora_requests[name] = compat.LoRARequest(name, *written[1:])
        return name


def _check_options(body: Any, task: Task) -> None:
    _refuse(body, _REFUSED_BY_TASKS, f"it cannot be used with the task '{task.name}'")
    if task.prefix.length and task.prefix.token_ids is None:
        why = f"the prefix of task '{task.name}' was learned, and vLLM would run what stands in its places"
        _refuse(body, _REFUSED_BY_LEARNED, why)


def _refuse(body: Any, options: Sequence[str], why: str) -> None:
    further = getattr(body, "vllm_xargs", None) or {}
    for option in options:
        if any(
            value is not None and value is not False for value in (getattr(body, option, None), further.get(option))
        ):
            raise UnsupportedOption(f"{option} is not supported: {why}; leave it out.")


def _has_other_content(messages: Sequence[Any]) -> bool:
    parts = [part for each in messages if isinstance(each.get("content"), list) for part in each["content"]]
    return any(not isinstance(part, str) and part.get("type") not in (None, "text") for part in parts)
