"""`TaskEndpoint`: tasks as models of stock ``vllm serve``.

It replaces the routes of chat completions, completions and the list of models; the others stay vLLM's. A request that
names a task is rewritten into one for vLLM's own handler, with the tokens of the task's prefix in front and a
`PrefixReference` for the connector; chat templates, tools, streaming and sampling are vLLM's own.
"""

from __future__ import annotations

import asyncio
import secrets
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from foreword.bank.bank import Bank
from foreword.core import Adapter, Task
from foreword.core.json_reader import parse_json
from foreword.errors import ForewordError, RequestError, UnsupportedOption
from foreword.models.model_info import ModelInfo, model_info
from foreword.server.operations.auth import Caller
from foreword.server.operations.error_handlers import error_response
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.table import TaskTable
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import (
    answers_label,
    from_ids,
    from_messages,
    from_rendered,
    from_text,
    require_generation,
    takes_one_message,
)
from foreword.vllm import compat
from foreword.vllm.connector import PREFIX_BYTES
from foreword.vllm.label_answers import LabelAnswers, ScoringEngine
from foreword.vllm.lora_folders import LoRAFolders
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder
from foreword.vllm.response_rewriter import ResponseRewriter
from foreword.vllm.scoring import Scoring

# Request fields that would change or show the tokens in the places of the prefix.
_UNSUPPORTED = ("kv_transfer_params",)
_UNSUPPORTED_BY_TASKS = ("cache_salt", "echo", "use_beam_search", "prompt_embeds", "truncate_prompt_tokens", "suffix")
_UNSUPPORTED_BY_LEARNED_PREFIXES = ("prompt_logprobs", "skip_reading_prefix_cache")
# Fields of the chat template, which is not used by tasks with a text or a template of their own.
_UNSUPPORTED_OUTSIDE_CHAT = (
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
)
# What a learned task says of sampling in place of the model's generation config, without which it was measured.
_GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
_STATE = "foreword"


class TaskEndpoint:
    """An endpoint plugin of vLLM, which loads it if ``VLLM_PLUGINS`` names ``foreword``."""

    name = "foreword"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the three routes, in front of vLLM's own."""
        checks = [Depends(compat.validate_json_request)]

        @app.post("/v1/chat/completions", dependencies=checks)
        async def chat(request: compat.ChatCompletionRequest, raw_request: Request) -> Response:
            return await _handle(raw_request, request, compat.create_chat_completion)

        @app.post("/v1/completions", dependencies=checks)
        async def complete(request: compat.CompletionRequest, raw_request: Request) -> Response:
            return await _handle(raw_request, request, compat.create_completion)

        @app.get("/v1/models")
        async def models(raw_request: Request) -> Response:
            response = await compat.show_available_models(raw_request)
            handlers = _task_handlers(raw_request)
            return response if handlers is None else await handlers.add_tasks(response)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Open the connector's bank; without the connector the routes do as vLLM's own."""
        setattr(state, _STATE, None)
        config = getattr(engine_client, "vllm_config", None)
        kv_transfer = getattr(config, "kv_transfer_config", None)
        if config is None or kv_transfer is None or kv_transfer.kv_connector != compat.CONNECTOR:
            return
        extra = kv_transfer.kv_connector_extra_config
        name = state.openai_serving_models.base_model_paths[0].name
        served = config.model_config
        model = await run_in_threadpool(model_info, served.model, trust_remote_code=served.trust_remote_code)
        prefix_bytes = extra.get("prefix_bytes", PREFIX_BYTES)
        setattr(state, _STATE, TaskHandlers(name, model, extra["bank"], prefix_bytes, engine_client, state))


def _task_handlers(request: Request) -> TaskHandlers | None:
    return getattr(request.app.state, _STATE)


async def _handle(http: Request, body: Any, vllm_handler: Any) -> Response:
    handlers = _task_handlers(http)
    if handlers is None:
        return await vllm_handler(body, http)
    try:
        return await handlers.handle(http, body, vllm_handler)
    except ForewordError as error:
        return error_response(error)


class TaskHandlers:
    """The tasks of a bank, in front of vLLM's own handlers.

    Args:
        name: the name under which vLLM serves the base model.
        model: the base model.
        bank: the connector's.
        prefix_bytes: bound of the prefixes that are kept in this process.
        engine_client: vLLM's engine, in the running event loop.
        state: of the application, with vLLM's handlers.
    """

    def __init__(
        self, name: str, model: ModelInfo, bank: str, prefix_bytes: int, engine_client: Any, state: Any
    ) -> None:
        vllm_config = engine_client.vllm_config
        self._base_model = name
        self._tokenizer = model.tokenizer
        self._serving_models = state.openai_serving_models
        self._serving_chat = state.openai_serving_chat
        self._prompt_builder = PromptBuilder(model.tokenizer, vllm_config.kv_transfer_config.engine_id)
        self._lora_folders = LoRAFolders(model, vllm_config)
        self._lora_names: dict[int, str] = {}  # under which vLLM serves them, by LoRA id
        scoring = Scoring(engine_client, self._prompt_builder, self._lora_folders)
        context, loop = vllm_config.model_config.max_model_len, asyncio.get_running_loop()
        engine: Any = ScoringEngine(name, model.identity, model.tokenizer, context, scoring, loop)
        opened = Bank(bank)
        self._table = TaskTable(engine, opened, {}, prefix_bytes=prefix_bytes)
        self._catalogue = Catalogue(engine, opened, {})
        self._label_answers = LabelAnswers(engine, self._table)

    async def add_tasks(self, models: Response) -> Response:
        """vLLM's list of models, without the LoRAs of tasks, and with the tasks behind it."""
        body = parse_json(bytes(models.body))
        body["data"] = [entry for entry in body["data"] if entry["id"] not in self._lora_names.values()]
        listed = {entry["id"] for entry in body["data"]} | {self._base_model}
        entries = await run_in_threadpool(self._catalogue.models)
        body["data"] += [entry for entry in entries if entry["id"] not in listed]
        return JSONResponse(body)

    async def handle(self, http: Request, body: Any, vllm_handler: Any) -> Response:
        """Have vLLM answer a request, behind the prefix of the task if it names one.

        Raises a ForewordError for an unknown task, and for a request that the task cannot answer.
        """
        _check_unsupported(body, _UNSUPPORTED, "only this server writes it")
        if body.model in self._serving_models.lora_requests:
            return await vllm_handler(body, http)
        if body.model is None or self._serving_models.is_base_model(body.model):
            model, body.model = body.model or self._base_model, self._vllm_model(None)
            return await ResponseRewriter(model, 0).rewrite(await vllm_handler(body, http))
        user = getattr(body, "user", None)  # of chat and text completions
        task = await self._table.resolve(body.model, None, Caller(), user if isinstance(user, str) else None)
        assert task is not None
        require_generation(task)
        _check_options(body, task)
        if answers_label(task):
            return await self._label_answers.respond(http)
        _set_defaults(body, task)
        model = body.model
        if isinstance(body, compat.ChatCompletionRequest):
            body.model = self._base_model
            prompts = [await self._chat_prompt(task, body)]
        else:
            prompts = self._completion_prompts(task, body)
        self._set_prompts(body, prompts)
        body.model = self._vllm_model(task.adapter)
        num_placeholders = 0 if task.prefix.token_ids is not None else task.prefix.length
        return await ResponseRewriter(model, num_placeholders).rewrite(await vllm_handler(body, http))

    def _completion_prompts(self, task: Task, body: Any) -> list[Prompt]:
        given = body.prompt
        if not body.add_special_tokens:
            raise UnsupportedOption("add_special_tokens is the task's own affair; leave it out, or send token ids.")
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise RequestError("prompt is missing; send a text or token ids.")
        return [
            from_text(self._tokenizer, task, each) if isinstance(each, str) else from_ids(task, each) for each in given
        ]

    async def _chat_prompt(self, task: Task, body: Any) -> Prompt:
        """The prompt of a chat. vLLM renders its chat template, tools included, unless the task has its own."""
        if _has_media(body.messages):
            raise UnsupportedOption("a task takes text alone in its messages; send images and audio to the base model.")
        if takes_one_message(task) or task.kind == "prompt":
            _check_unsupported(body, _UNSUPPORTED_OUTSIDE_CHAT, f"task '{task.name}' makes its text by itself")
            if not body.add_generation_prompt:
                raise UnsupportedOption(
                    f"task '{task.name}' makes its text by itself; leave add_generation_prompt out."
                )
            return from_messages(self._tokenizer, task, body.messages)
        turn = [{"role": "system", "content": task.text}] if task.kind == "system" else []
        # A copy: rendering changes a request, and vLLM renders this one again, from the token ids.
        request = body.model_copy(update={"messages": [*turn, *body.messages]}, deep=True)
        rendered = await self._serving_chat.render_chat_request(request)
        if not isinstance(rendered, tuple):
            raise RequestError(rendered.error.message)
        return from_rendered(self._tokenizer, task, list(rendered[1][0]["prompt_token_ids"]))

    def _set_prompts(self, body: Any, prompts: Sequence[Prompt]) -> None:
        """Write the prompts into the request, with the tokens of their prefix in front and a reference to it.

        The prompts of one request share a reference: any slice of a static prefix is exact, a learned one is whole.
        """
        penalized = (body.repetition_penalty or 1.0) != 1.0
        length = min(prompt.prefix_length for prompt in prompts)
        prefix = next((prompt.prefix for prompt in prompts if prompt.prefix is not None), None) if length else None
        if penalized and len(prompts) > 1 and prefix is not None and prefix.token_ids is None:
            raise UnsupportedOption(
                "repetition_penalty behind a learned prefix takes one prompt a request; send them apart."
            )
        prefixed = [self._build_prompt(prompt, prefix, length, penalized) for prompt in prompts]
        params = prefixed[0].kv_transfer_params
        if isinstance(body, compat.ChatCompletionRequest):
            # vLLM renders messages itself unless it finds their tokens here.
            body.kv_transfer_params = {**(params or {}), "prompt_token_ids": list(prefixed[0].token_ids)}
        else:
            body.prompt = [list(each.token_ids) for each in prefixed]
            body.kv_transfer_params = params
        body.cache_salt = prefixed[0].cache_salt

    def _build_prompt(self, prompt: Prompt, prefix: Any, length: int, penalized: bool) -> PrefixedPrompt:
        token_ids = prompt.token_ids
        if prompt.prefix is not None and prompt.prefix.token_ids is not None:
            token_ids = (*prompt.prefix.token_ids[length : prompt.prefix_length], *token_ids)
        return self._prompt_builder.build(token_ids, prefix, length, penalized=penalized)

    def _vllm_model(self, adapter: Adapter | None) -> str:
        """The name under which vLLM serves the base model, or a LoRA over it."""
        request = self._lora_folders.lora_request(adapter)
        if request is None:
            return self._base_model
        # A random name, by which no client can ask for the LoRA without its prefix.
        lora_id = request.lora_int_id
        name = self._lora_names.setdefault(lora_id, f"{request.lora_name}#{secrets.token_hex(16)}")
        if name not in self._serving_models.lora_requests:
            self._serving_models.lora_requests[name] = compat.LoRARequest(name, lora_id, request.lora_path)
        return name


def _set_defaults(body: Any, task: Task) -> None:
    """Write the task's own sampling into what the request does not say; a learned task is greedy without one."""
    defaults = {**(_GREEDY if task.kind == "learned" else {}), **task.generation}
    given = {"max_tokens" if name == "max_completion_tokens" else name for name in body.model_fields_set}
    for name in defaults.keys() - given:
        setattr(body, name, defaults[name])


def _check_options(body: Any, task: Task) -> None:
    _check_unsupported(body, _UNSUPPORTED_BY_TASKS, f"it cannot be used with the task '{task.name}'")
    if task.prefix.length and task.prefix.token_ids is None:
        why = f"the prefix of task '{task.name}' was learned, and vLLM would run what stands in its places"
        _check_unsupported(body, _UNSUPPORTED_BY_LEARNED_PREFIXES, why)


def _check_unsupported(body: Any, options: Sequence[str], why: str) -> None:
    """Raise UnsupportedOption if one of the options is set, in the body or in its ``vllm_xargs``."""
    extra_args = getattr(body, "vllm_xargs", None) or {}
    for option in options:
        values = getattr(body, option, None), extra_args.get(option)
        if any(value is not None and value is not False for value in values):
            raise UnsupportedOption(f"{option} is not supported: {why}; leave it out.")


def _has_media(messages: Sequence[Any]) -> bool:
    parts = [part for each in messages if isinstance(each.get("content"), list) for part in each["content"]]
    return any(not isinstance(part, str) and part.get("type") not in (None, "text") for part in parts)
