"""The command ``foreword chat``."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.options import SamplingOptions
from foreword.errors import UnsupportedModel, UsageError
from foreword.home import home


@expand_options
def chat(
    name: Annotated[
        str | None,
        typer.Argument(help="Task, or task@version.", show_default="the base model", autocompletion=complete_task),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="The task, instead of NAME.", autocompletion=complete_task)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer at most.", show_default="the task's, else 1024", min=1)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 is greedy.", show_default="the task's, the model's, else 1; 0 if learned"),
    ] = None,
    *,
    options: SamplingOptions,
) -> None:
    """Talk with the base model or a task; /help in it lists what else it knows.

    Every line of a pipe is a question, and stdout has nothing but the answers.

    Example: foreword chat support
    """
    if name is not None and task is not None:
        raise UsageError("NAME and --task are the same; give one of them.")
    ref = name or task
    store = options.open_bank()
    options.check_task(ref)
    lm = options.open_model()
    if ref is None and not lm.causal and not lm.is_encoder_decoder:
        raise UnsupportedModel(f"{lm.name} is an encoder, which writes no text; ask it with foreword classify.")
    from foreword.cli.chat.repl import ChatRepl
    from foreword.cli.chat.session import ChatSession
    from foreword.evaluation.answers import Answers

    with options.open_engine(lm) as engine:
        session = ChatSession(
            Answers(engine, model_defaults=options.model_defaults),
            lambda ref: options.find_task(ref, lm),
            max_tokens,
            temperature,
        )
        session.select_task(ref)
        ChatRepl(session, store, home() / "chat_history").run()
