"""``foreword generate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.options import Json, SamplingOptions, emit, read_text, say
from foreword.errors import EngineError, UsageError

if TYPE_CHECKING:
    from foreword.core import Constraint, Task
    from foreword.engine.engine import Engine
    from foreword.engine.protocol import Request, Stream
    from foreword.models import LanguageModel
    from foreword.text.prompt import Prompt


@expand_options
def generate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] TEXT|-", help="Task, and the text.", autocompletion=complete_task),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="The task, instead of NAME.", autocompletion=complete_task)
    ] = None,
    field: Annotated[list[str] | None, typer.Option("--field", help="k=v for the task's template.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens at most.", show_default="the task's, else 128")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 is greedy.", show_default="the task's, the model's, else 0; 0 if learned"),
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass to sample from.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Most probable tokens to sample from.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability, as a share of the largest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 against repetition.")] = None,
    json_schema: Annotated[str | None, typer.Option(metavar="FILE", help="JSON that this schema accepts.")] = None,
    regex: Annotated[str | None, typer.Option(help="Text that this matches as a whole.")] = None,
    choice: Annotated[list[str] | None, typer.Option("--choice", help="One of these texts.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer.")] = None,
    beams: Annotated[int | None, typer.Option(help="Search with so many beams, and print the best.")] = None,
    *,
    options: SamplingOptions,
    json: Json = False,
) -> None:
    """Continue a text behind a task's prefix, verbatim: no template, no chat template; or answer its label.

    Examples: foreword generate "Once upon a time"; foreword generate story "There was";
    foreword generate reviews --field text="a masterpiece"
    """
    name, text = _split_words(words or [], task, bool(field))
    if name is None and text in options.open_bank().names():
        raise UsageError(f"'{text}' is a task, and there is no text for it; add one, or --field k=v.")
    fields = _parse_fields(field or [])
    constraint = _constraint(json_schema, regex, choice)
    options.check_task(name)
    lm = options.open_model()
    found = options.find_task(name, lm)
    from foreword.engine.protocol import Request
    from foreword.evaluation.answers import Answers
    from foreword.evaluation.sampling_params import task_sampling_params
    from foreword.text import task_prompts

    prompt = _prompt(lm, found, text, fields)
    default_max_tokens = task_sampling_params(found).max_tokens
    params = task_sampling_params(
        found,
        {} if beams is not None else options.model_defaults,  # a search takes none
        max_tokens=max_tokens
        if max_tokens is not None
        else prompt.cap_max_tokens(default_max_tokens, lm.context, is_encoder_decoder=lm.is_encoder_decoder),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        constraint=constraint,
        seed=seed,
        stop=tuple(stop) if stop else None,
    )
    if params.temperature == 0 and not (top_p is top_k is min_p is seed is None):
        raise UsageError(
            "--top-p, --top-k, --min-p and --seed choose among samples, and greedy takes none; add --temperature."
        )
    if beams is not None and found is not None and task_prompts.answers_label(found):
        raise UsageError(f"task '{found.name}' answers the best of its labels; leave --beams out.")
    request = Request.from_prompt(prompt, params)
    with options.open_engine(lm) as engine:
        if beams is None:
            answer = _collect(Answers(engine).submit(found, prompt, params)[0], echo=not json)
        else:
            answer = _run_beam_search(engine, request, beams, echo=not json)
    if not answer.text and answer.finish_reason == "stop":
        say("the model ended its answer at once; a system task is meant to be asked over chat (serve).")
    usage = {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        "cached_tokens": request.prefix_length,
    }
    emit({**asdict(answer), "usage": usage}, "", json)
    if constraint is not None and answer.finish_reason == "length":
        raise EngineError(
            f"the answer was cut at {params.max_tokens} tokens, before it had the form that was asked for; give more "
            "--max-tokens."
        )


@dataclass(frozen=True)
class _GeneratedText:
    text: str
    token_ids: list[int]
    finish_reason: str | None


def _collect(stream: Stream, *, echo: bool) -> _GeneratedText:
    """Collect a streamed answer, and print it meanwhile if ``echo``."""
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if chunk.error is not None:
            raise EngineError(chunk.error)
        if echo:
            print(chunk.text, end="", flush=True)
    text = "".join(chunk.text for chunk in chunks)
    return _GeneratedText(text, [token for chunk in chunks for token in chunk.token_ids], chunks[-1].finish_reason)


def _run_beam_search(engine: Engine, request: Request, beams: int, *, echo: bool) -> _GeneratedText:
    """The best hypothesis of a beam search; it is printed at the end if ``echo``."""
    from foreword.engine.beam_search import beam_search

    best = beam_search(engine, request, beams)[0]
    text_ids = best.token_ids[:-1] if best.finished else best.token_ids  # a token that ends is not part of the text
    text = engine.tokenizer.decode(text_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if echo:
        print(text, end="", flush=True)
    return _GeneratedText(text, list(best.token_ids), "stop" if best.finished else "length")


def _split_words(words: list[str], task: str | None, has_fields: bool) -> tuple[str | None, str | None]:
    """The task and the text among the arguments of the command."""
    if len(words) + (task is not None) > 2:
        raise UsageError("give a task and one text; put the text in quotes.")
    given = [*([] if task is None else [task]), *words]
    if task is None and len(words) == 1 and not has_fields:
        given = [None, *words]
    name, text = [*given, None, None][:2]
    if text is None and not has_fields:
        raise UsageError("there is no text to continue; give one, - for standard input, or --field k=v.")
    if text is not None and has_fields:
        raise UsageError("give either a text or --field k=v, not both.")
    return name, read_text("-") if text == "-" else text


def _parse_fields(pairs: list[str]) -> dict[str, str]:
    if bad := next((pair for pair in pairs if "=" not in pair), None):
        raise UsageError(f"--field {bad!r} is not k=v; write it as --field text='some text'.")
    fields = {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs}
    if len(fields) < len(pairs):
        raise UsageError("a --field is given twice; give each field once.")
    return fields


def _constraint(json_schema: str | None, regex: str | None, choice: list[str] | None) -> Constraint | None:
    from foreword.core import Constraint

    if [json_schema, regex, choice].count(None) < 2:
        raise UsageError("--json-schema, --regex and --choice each give the answer its form; give one of them.")
    if json_schema is not None:
        return Constraint.json_schema(read_text(json_schema))
    if regex is not None:
        return Constraint.regex(regex)
    return Constraint.choice(choice) if choice is not None else None


def _prompt(lm: LanguageModel, task: Task | None, text: str | None, fields: dict[str, str]) -> Prompt:
    from foreword.text import task_prompts

    task_prompts.require_generation(task)
    kind: task_prompts.ModelKind = {"causal": lm.causal, "is_encoder_decoder": lm.is_encoder_decoder}
    if text is None:
        return task_prompts.from_fields(lm.tokenizer, task, fields, **kind)
    return task_prompts.from_text(lm.tokenizer, task, text, **kind)
