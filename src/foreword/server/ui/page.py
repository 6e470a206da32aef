"""`Page`: the Gradio components of the page, and what happens when they are used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import gradio as gr

from foreword.server.ui import html
from foreword.server.ui.answer_pane import AnswerPane, compare
from foreword.server.ui.server_client import AuthHeaders, PlaygroundRequest, Refused, ServerClient
from foreword.server.ui.task_versions import TaskVersion, TaskVersions
from foreword.server.ui.translations import Say, say_in

Made = TypeVar("Made")
Update = dict[str, Any]


class Page:
    """One page for all visitors. Their browsers show a key, if there are keys, and the page shows it to the server.

    Args:
        routes: answers questions.
        shelf: has the versions of tasks.
        base: the base model's name.
    """

    def __init__(self, routes: ServerClient, shelf: TaskVersions, base: str) -> None:
        self._routes = routes
        self._shelf = shelf
        self._base = base
        self._words: dict[Any, Callable[[Say], Update]] = {}
        # No answers from the machines of Gradio's makers are needed, and none are asked for.
        with gr.Blocks(title="Foreword", analytics_enabled=False, fill_width=True) as self.blocks:
            self._lay_out()
            self._listen()
        # Every visitor may have several events on their way: the engine is what orders them.
        self.blocks.queue(api_open=False, default_concurrency_limit=None)

    # What is where.

    def _lay_out(self) -> None:
        with gr.Row(elem_id="top"):
            gr.HTML(html.header(self._base), elem_id="header")
            self.language = gr.Radio(
                [("English", "en"), ("中文", "zh")], value="en", show_label=False, container=False, elem_id="language"
            )
        self.notice = gr.HTML(elem_id="notice")
        with gr.Tabs():
            with self._said(gr.Tab, lambda say: {"label": say("playground")}, id="playground"):
                self._lay_out_playground()
            with self._said(gr.Tab, lambda say: {"label": say("classify")}, id="classify"):
                self._lay_out_classify()
            with self._said(gr.Tab, lambda say: {"label": say("tasks")}, id="tasks"):
                self._lay_out_tasks()

    def _lay_out_playground(self) -> None:
        self.models = self._said(
            gr.Dropdown,
            lambda say: {"label": say("models"), "info": say("models_hint")},
            multiselect=True,
            elem_id="models",
        )
        self.question = self._said(
            gr.Textbox,
            lambda say: {"label": say("question"), "placeholder": say("question_hint")},
            lines=3,
            max_lines=12,
            elem_id="question",
        )
        with gr.Row(elem_classes="actions"):
            self.ask = self._said(gr.Button, lambda say: {"value": say("ask")}, variant="primary", elem_id="ask")
            self.stop = self._said(gr.Button, lambda say: {"value": say("stop")}, elem_id="stop")
        with self._said(gr.Accordion, lambda say: {"label": say("settings")}, open=False, elem_id="settings"), gr.Row():
            self.form = self._said(
                gr.Radio,
                lambda say: {
                    "label": say("form"),
                    "choices": [(say("form_chat"), "chat"), (say("form_text"), "text")],
                },
                value="chat",
                elem_id="form",
            )
            self.max_tokens = self._said(
                gr.Slider, lambda say: {"label": say("max_tokens")}, minimum=1, maximum=1024, value=128, step=1
            )
            self.temperature = self._said(
                gr.Slider,
                lambda say: {"label": say("temperature"), "info": say("temperature_hint")},
                minimum=0,
                maximum=2,
                value=0,
                step=0.1,
            )
        self.answers = gr.HTML(html.hint("ask_to_start"), elem_id="answers")

    def _lay_out_classify(self) -> None:
        self.labellers = self._said(
            gr.Dropdown,
            lambda say: {"label": say("labellers"), "info": say("labellers_hint")},
            multiselect=True,
            elem_id="labellers",
        )
        self.sample = self._said(
            gr.Textbox,
            lambda say: {"label": say("sample"), "placeholder": say("sample_hint")},
            lines=3,
            max_lines=12,
            elem_id="sample",
        )
        with gr.Row(elem_classes="actions"):
            self.label = self._said(
                gr.Button, lambda say: {"value": say("classify")}, variant="primary", elem_id="label"
            )
        self.probabilities = gr.HTML(html.hint("classify_to_start"), elem_id="probabilities")

    def _lay_out_tasks(self) -> None:
        self.tasks = gr.HTML(elem_id="tasks")
        with gr.Row():
            self.task = self._said(gr.Dropdown, lambda say: {"label": say("task")}, elem_id="task")
            self.version = self._said(
                gr.Dropdown, lambda say: {"label": say("version"), "info": say("version_hint")}, elem_id="version"
            )
        with gr.Row(elem_classes="actions"):
            self.rollback = self._said(
                gr.Button, lambda say: {"value": say("rollback")}, variant="primary", elem_id="rollback"
            )
            self.refresh = self._said(gr.Button, lambda say: {"value": say("refresh")}, elem_id="refresh")
        self.done = gr.HTML(elem_id="done")
        self.versions = gr.HTML(elem_id="versions")

    # What happens when.

    def _listen(self) -> None:
        words = list(self._words)
        lists = [self.notice, self.models, self.labellers, self.tasks, self.task]
        chosen = [self.models, self.labellers, self.task]
        versions = [self.version, self.versions]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        self.blocks.load(self._speak, self.language, [self.language, *words], js="foreword.language", **quiet)
        self.language.input(self._speak, self.language, [self.language, *words], js="foreword.remember", **quiet)
        for event in (self.blocks.load, self.refresh.click):
            event(self._list, chosen, lists, **quiet).then(self._versions, self.task, versions, **quiet)

        asking = self.ask.click(
            self._ask,
            [self.models, self.question, self.form, self.max_tokens, self.temperature],
            self.answers,
            **quiet,
        )
        self.stop.click(None, cancels=[asking], api_visibility="private")
        self.label.click(self._classify, [self.labellers, self.sample], self.probabilities, **quiet)
        self.task.input(self._versions, self.task, versions, **quiet)
        rolled = self.rollback.click(self._rollback, [self.task, self.version], self.done, **quiet)
        rolled.then(self._list, chosen, lists, **quiet).then(self._versions, self.task, versions, **quiet)

    def _said(self, kind: Callable[..., Made], words: Callable[[Say], Update], **fixed: Any) -> Made:
        """A component whose words follow the language."""
        made = kind(**words(say_in("en")), **fixed)
        self._words[made] = words
        return made

    def _speak(self, language: str) -> list[Any]:
        say = say_in(language)
        return [language, *(gr.update(**words(say)) for words in self._words.values())]

    async def _list(
        self, models: Sequence[str], labellers: Sequence[str], task: str | None, visit: gr.Request
    ) -> list[Update | str]:
        """Everything that the server offers; what is chosen stays chosen if it is still there."""
        try:
            names = [model["id"] for model in await self._routes.models(_pass(visit))]
        except Refused as error:
            return [html.problem(str(error)), *([gr.skip()] * 4)]
        try:
            served = await self._shelf.tasks(_pass(visit))
        except Refused as error:  # a server without a bank has tasks all the same
            return ["", _choices(names, models, names[:2]), gr.skip(), html.problem(str(error)), gr.skip()]
        labelling = [each.task for each in served if each.labels]
        stored = [each.task for each in served]
        return [
            "",
            _choices(names, models, names[:2]),
            _choices(labelling, labellers, labelling[:1]),
            html.tasks(served),
            gr.update(choices=stored, value=task if task in stored else next(iter(stored), None)),
        ]

    async def _versions(self, task: str | None, visit: gr.Request) -> list[Update | str]:
        """The versions of a task, of which the one before the served is offered."""
        if not task:
            return [gr.update(choices=[], value=None), ""]
        try:
            found = await self._shelf.versions(_pass(visit), task)
        except Refused as error:
            return [gr.update(choices=[], value=None), html.problem(str(error))]
        versions = [each.version for each in found]
        return [gr.update(choices=versions, value=_before(found)), html.versions(task, found)]

    async def _ask(
        self, models: Sequence[str], text: str, form: str, max_tokens: int, temperature: float, visit: gr.Request
    ) -> AsyncIterator[str]:
        if mistake := _missing(models, text):
            yield mistake
            return
        question = PlaygroundRequest(text, form == "chat", int(max_tokens), float(temperature))

        def ask(model: str) -> AsyncIterator[AnswerPane]:
            return self._routes.ask(_pass(visit), model, question, model == self._base)

        async for columns in compare(models, ask):
            yield html.answers(columns)

    async def _classify(self, tasks: Sequence[str], text: str, visit: gr.Request) -> str:
        if mistake := _missing(tasks, text):
            return mistake
        found = {}
        for task in tasks:
            try:
                found[task] = await self._routes.classify(_pass(visit), task, text)
            except Refused as error:
                found[task] = str(error)
        return html.probabilities(found)

    async def _rollback(self, task: str | None, version: str | None, visit: gr.Request) -> str:
        if not task or not version:
            return html.mistake("no_version")
        try:
            served = await self._shelf.rollback(_pass(visit), task, version)
        except Refused as error:
            return html.problem(str(error))
        return html.done(f"{task}@{served}", "now_served")


def _pass(visit: gr.Request) -> AuthHeaders:
    return visit.headers.get("authorization")


def _missing(models: Sequence[str], text: str | None) -> str | None:
    if not models:
        return html.mistake("nothing_chosen")
    return None if text and text.strip() else html.mistake("nothing_typed")


def _choices(offered: list[str], chosen: Sequence[str], usual: list[str]) -> Update:
    return gr.update(choices=offered, value=[name for name in chosen or () if name in offered] or usual)


def _before(found: Sequence[TaskVersion]) -> str | None:
    """The version that rolling back means: the next older one, else the served one."""
    served = next((index for index, each in enumerate(found) if each.served), None)
    if served is None:
        return None
    return found[min(served + 1, len(found) - 1)].version
