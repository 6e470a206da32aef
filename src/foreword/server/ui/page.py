"""`Page`: the Gradio components of the page and their event handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import gradio as gr

from foreword.server.ui import html
from foreword.server.ui.answer_pane import AnswerPane, compare
from foreword.server.ui.server_client import Authorization, PlaygroundRequest, ServerClient, ServerRefusal
from foreword.server.ui.task_versions import TaskVersion, TaskVersions
from foreword.server.ui.translations import text

Component = TypeVar("Component")
Update = dict[str, Any]
Texts = Mapping[str, str | Sequence[tuple[str, str]]]
"""Keys of translations by the property that shows them; ``choices`` has pairs of a key and a value."""


class Page:
    """One page for all visitors; requests carry the Authorization header of the visitor's browser.

    Args:
        client: sends requests to the server.
        task_versions: lists versions of tasks and rolls back.
        base: the base model's name.
    """

    def __init__(self, client: ServerClient, task_versions: TaskVersions, base: str) -> None:
        self._client = client
        self._task_versions = task_versions
        self._base = base
        self._translated: dict[Any, Texts] = {}
        # Gradio's servers get no analytics.
        with gr.Blocks(title="Foreword", analytics_enabled=False, fill_width=True) as self.blocks:
            self._build()
            self._bind_events()
        # Every visitor may have several events running: the engine schedules them.
        self.blocks.queue(api_open=False, default_concurrency_limit=None)

    # Layout.

    def _build(self) -> None:
        with gr.Row(elem_id="top"):
            gr.HTML(html.header(self._base), elem_id="header")
            self.language = gr.Radio(
                [("English", "en"), ("中文", "zh")], value="en", show_label=False, container=False, elem_id="language"
            )
        self.notice = gr.HTML(elem_id="notice")
        with gr.Tabs():
            with self._translate(gr.Tab, {"label": "playground"}, id="playground"):
                self._build_playground()
            with self._translate(gr.Tab, {"label": "classify"}, id="classify"):
                self._build_classify()
            with self._translate(gr.Tab, {"label": "tasks"}, id="tasks"):
                self._build_tasks()

    def _build_playground(self) -> None:
        self.models = self._translate(
            gr.Dropdown, {"label": "models", "info": "models_hint"}, multiselect=True, elem_id="models"
        )
        self.question = self._translate(
            gr.Textbox, {"label": "question", "placeholder": "question_hint"}, lines=3, max_lines=12, elem_id="question"
        )
        with gr.Row(elem_classes="actions"):
            self.ask = self._translate(gr.Button, {"value": "ask"}, variant="primary", elem_id="ask")
            self.stop = self._translate(gr.Button, {"value": "stop"}, elem_id="stop")
        with (
            self._translate(gr.Accordion, {"label": "settings"}, open=False, elem_id="settings"),
            gr.Row(),
        ):
            self.form = self._translate(
                gr.Radio,
                {"label": "form", "choices": [("form_chat", "chat"), ("form_text", "text")]},
                value="chat",
                elem_id="form",
            )
            self.max_tokens = self._translate(
                gr.Slider, {"label": "max_tokens"}, minimum=1, maximum=1024, value=128, step=1
            )
            self.temperature = self._translate(
                gr.Slider,
                {"label": "temperature", "info": "temperature_hint"},
                minimum=0,
                maximum=2,
                value=0,
                step=0.1,
            )
        self.answers = gr.HTML(html.hint("ask_to_start"), elem_id="answers")

    def _build_classify(self) -> None:
        self.labellers = self._translate(
            gr.Dropdown, {"label": "labellers", "info": "labellers_hint"}, multiselect=True, elem_id="labellers"
        )
        self.sample = self._translate(
            gr.Textbox, {"label": "sample", "placeholder": "sample_hint"}, lines=3, max_lines=12, elem_id="sample"
        )
        with gr.Row(elem_classes="actions"):
            self.label = self._translate(gr.Button, {"value": "classify"}, variant="primary", elem_id="label")
        self.probabilities = gr.HTML(html.hint("classify_to_start"), elem_id="probabilities")

    def _build_tasks(self) -> None:
        self.tasks = gr.HTML(elem_id="tasks")
        with gr.Row():
            self.task = self._translate(gr.Dropdown, {"label": "task"}, elem_id="task")
            self.version = self._translate(gr.Dropdown, {"label": "version", "info": "version_hint"}, elem_id="version")
        with gr.Row(elem_classes="actions"):
            self.rollback = self._translate(gr.Button, {"value": "rollback"}, variant="primary", elem_id="rollback")
            self.refresh = self._translate(gr.Button, {"value": "refresh"}, elem_id="refresh")
        self.done = gr.HTML(elem_id="done")
        self.versions = gr.HTML(elem_id="versions")

    # Events.

    def _bind_events(self) -> None:
        translated = [self.language, *self._translated]
        lists = [self.notice, self.models, self.labellers, self.tasks, self.task]
        chosen = [self.models, self.labellers, self.task]
        versions = [self.version, self.versions]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        self.blocks.load(self._set_language, self.language, translated, js="foreword.language", **quiet)
        self.language.input(self._set_language, self.language, translated, js="foreword.remember", **quiet)
        for event in (self.blocks.load, self.refresh.click):
            event(self._list, chosen, lists, **quiet).then(self._versions, self.task, versions, **quiet)

        answering = self.ask.click(
            self._ask,
            [self.models, self.question, self.form, self.max_tokens, self.temperature],
            self.answers,
            **quiet,
        )
        self.stop.click(None, cancels=[answering], api_visibility="private")
        self.label.click(self._classify, [self.labellers, self.sample], self.probabilities, **quiet)
        self.task.input(self._versions, self.task, versions, **quiet)
        rolled = self.rollback.click(self._rollback, [self.task, self.version], self.done, **quiet)
        rolled.then(self._list, chosen, lists, **quiet).then(self._versions, self.task, versions, **quiet)

    def _translate(self, component_class: Callable[..., Component], texts: Texts, **options: Any) -> Component:
        """A component whose ``texts`` follow the page's language."""
        component = component_class(**_in_language(texts, "en"), **options)
        self._translated[component] = texts
        return component

    def _set_language(self, language: str) -> list[Any]:
        return [language, *(gr.update(**_in_language(texts, language)) for texts in self._translated.values())]

    async def _list(
        self, models: Sequence[str], labellers: Sequence[str], task: str | None, request: gr.Request
    ) -> list[Update | str]:
        """Update the lists of models and tasks; what is chosen stays chosen if it is still there."""
        try:
            names = [model["id"] for model in await self._client.models(_authorization(request))]
        except ServerRefusal as error:
            return [html.server_error(str(error)), *([gr.skip()] * 4)]
        try:
            served = await self._task_versions.tasks(_authorization(request))
        except ServerRefusal as error:  # a server without a bank has tasks all the same
            return ["", _keep_chosen(names, models, names[:2]), gr.skip(), html.server_error(str(error)), gr.skip()]
        with_labels = [each.task for each in served if each.labels]
        tasks = [each.task for each in served]
        return [
            "",
            _keep_chosen(names, models, names[:2]),
            _keep_chosen(with_labels, labellers, with_labels[:1]),
            html.tasks(served),
            gr.update(choices=tasks, value=task if task in tasks else next(iter(tasks), None)),
        ]

    async def _versions(self, task: str | None, request: gr.Request) -> list[Update | str]:
        """Update the versions of a task; the one before the served version is preselected."""
        if not task:
            return [gr.update(choices=[], value=None), ""]
        try:
            versions = await self._task_versions.versions(_authorization(request), task)
        except ServerRefusal as error:
            return [gr.update(choices=[], value=None), html.server_error(str(error))]
        choices = [each.version for each in versions]
        return [gr.update(choices=choices, value=_previous_version(versions)), html.versions(task, versions)]

    async def _ask(
        self, models: Sequence[str], question: str, form: str, max_tokens: int, temperature: float, request: gr.Request
    ) -> AsyncIterator[str]:
        if error := _missing_input(models, question):
            yield error
            return
        prompt = PlaygroundRequest(question, form == "chat", int(max_tokens), float(temperature))

        def stream_answer(model: str) -> AsyncIterator[AnswerPane]:
            return self._client.stream_answer(_authorization(request), model, prompt, model == self._base)

        async for panes in compare(models, stream_answer):
            yield html.answers(panes)

    async def _classify(self, tasks: Sequence[str], sample: str, request: gr.Request) -> str:
        if error := _missing_input(tasks, sample):
            return error
        results: dict[str, dict[str, float] | float | str] = {}
        for task in tasks:
            try:
                results[task] = await self._client.classify(_authorization(request), task, sample)
            except ServerRefusal as error:
                results[task] = str(error)
        return html.probabilities(results)

    async def _rollback(self, task: str | None, version: str | None, request: gr.Request) -> str:
        if not task or not version:
            return html.input_error("no_version")
        try:
            served = await self._task_versions.rollback(_authorization(request), task, version)
        except ServerRefusal as error:
            return html.server_error(str(error))
        return html.success(f"{task}@{served}", "now_served")


def _in_language(texts: Texts, language: str) -> Update:
    return {
        name: text(key, language) if isinstance(key, str) else [(text(each, language), value) for each, value in key]
        for name, key in texts.items()
    }


def _authorization(request: gr.Request) -> Authorization:
    return request.headers.get("authorization")


def _missing_input(models: Sequence[str], typed: str | None) -> str | None:
    if not models:
        return html.input_error("nothing_chosen")
    return None if typed and typed.strip() else html.input_error("nothing_typed")


def _keep_chosen(choices: list[str], chosen: Sequence[str], default: list[str]) -> Update:
    """Update a list's choices; those of ``chosen`` that are among them stay chosen, else ``default`` is."""
    return gr.update(choices=choices, value=[name for name in chosen or () if name in choices] or default)


def _previous_version(versions: Sequence[TaskVersion]) -> str | None:
    """The version before the served one, or the served one if it is the oldest. ``versions`` are newest first."""
    served = next((index for index, each in enumerate(versions) if each.served), None)
    if served is None:
        return None
    return versions[min(served + 1, len(versions) - 1)].version
