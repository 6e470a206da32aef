"""`TaskPrefixes`: the prefix of a request by ``task_id``: a static prompt, a P-tuning prefix, or both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.bank.bank import Bank
from foreword.bank.names import suggest
from foreword.core import KVPrefix, Task
from foreword.errors import UnknownTask, UsageError
from foreword.interop import peft, ptuning
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.prompts.static import static_task
from foreword.text import chat
from foreword.text.prompt import Prompt
from foreword.text.static_prompts import StaticPrompt, parse_prompts, read_prompts
from foreword.text.task_prompts import answers_label, from_text, require_generation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE_VARIABLE, ROWS_VARIABLE = "MULTI_TASK_PROMPT", "MULTI_TASK_PROMPT_STR"


def read_static_prompts(environment: Mapping[str, str] = os.environ) -> list[StaticPrompt]:
    """The rows of the file that ``MULTI_TASK_PROMPT`` names, else those in ``MULTI_TASK_PROMPT_STR``, else none.

    Raises DataError that names the row.
    """
    if file := environment.get(FILE_VARIABLE):
        return read_prompts(file)
    rows = environment.get(ROWS_VARIABLE)
    return parse_prompts(rows, f"${ROWS_VARIABLE}") if rows else []


def ptuning_task(lm: LanguageModel, source: str) -> Task:
    """The prefix of a checkpoint of P-tuning v2 (THUDM, ChatGLM2 and later), of a folder that PEFT saved, or of a task
    in a bank.

    Raises:
        UsageError: there is none, or it holds more or other than a prefix.
        ModelMismatch: it was made for another model.
        CorruptFile: it is damaged.
    """
    folder = Path(source).expanduser().absolute()
    if (folder / "current").is_file():
        task = Bank(str(folder.parent)).load(folder.name)
        task.prefix.model.check(lm.identity, f"task '{task.name}'")
    elif (folder / peft.CONFIG).is_file():
        task = peft.import_peft(lm, peft.read_peft(source), "ptuning")
    else:
        task = ptuning.import_ptuning(lm, ptuning.read_ptuning(source), "ptuning")
    require_generation(task)
    if task.adapter is not None:
        raise UsageError(
            f"ptuning_path {source} changes the model's layers (LoRA) and has no prefix; give one that has."
        )
    return task


@dataclass(frozen=True, eq=False)
class StackedPrompt:
    """A static prompt computed behind a learned prefix.

    Attributes:
        front: the learned prefix.
        text: the static prompt.
        token_ids: of the text as it stands behind ``front``.
        prefix: both as one.
    """

    front: Task
    text: str
    token_ids: tuple[int, ...]
    prefix: KVPrefix

    @classmethod
    def lower(cls, lm: LanguageModel, front: Task, prompt: StaticPrompt) -> StackedPrompt:
        """Raises PromptTooLong, or TemplateError for a system turn that the model's chat template does not have."""
        text = prompt.text
        if prompt.kind == "system":
            text = chat.without_bos(lm.tokenizer, chat.system_text(lm.tokenizer, text))
        ids = from_text(lm.tokenizer, front, text).token_ids
        return cls(front, text, ids, lower_tokens(lm, ids, past=front.prefix))

    def prompt(self, tokenizer: PreTrainedTokenizerBase, text: str, *, all_ids: bool) -> Prompt:
        """The prompt of the joined text, with the static part in the prefix.

        Where the two texts share a token, or with ``all_ids``, only ``front`` is in the prefix, which is never cut.
        """
        whole = from_text(tokenizer, self.front, self.text + text)
        length = len(self.token_ids)
        own = whole.token_ids[length:]
        if all_ids or not own or whole.token_ids[:length] != self.token_ids:
            return whole
        return replace(whole, token_ids=own, prefix=self.prefix, prefix_length=self.prefix.length)


class TaskPrefixes:
    """Static prompts by ``task_id``, each computed once, behind the P-tuning prefix if there is one.

    Args:
        lm: runs them.
        ptuning: the P-tuning prefix, which requests without ``task_id`` have in front too.
        prompts: the static prompts.

    Raises:
        PromptTooLong: one leaves no room for a request.
        UnsupportedModel, UsageError: the model cannot compute one, or a task that labels would stand in front of it.
    """

    def __init__(self, lm: LanguageModel, ptuning: Task | None, prompts: Sequence[StaticPrompt]) -> None:
        self._tokenizer = lm.tokenizer
        self._kind = {"causal": lm.causal, "is_encoder_decoder": lm.is_encoder_decoder}
        self._ptuning = ptuning
        if ptuning is not None and prompts and answers_label(ptuning):
            raise UsageError(
                f"task '{ptuning.name}' labels texts, and no static prompt stands behind it; leave {FILE_VARIABLE} out."
            )
        self._static: dict[str, Task | StackedPrompt] = {
            prompt.name: static_task(lm, prompt.name, prompt.kind, prompt.text)
            if ptuning is None
            else StackedPrompt.lower(lm, ptuning, prompt)
            for prompt in prompts
        }

    def prompt(self, task_id: str | None, text: str, *, all_ids: bool = False) -> Prompt:
        """The prompt of ``text``, verbatim, behind the prefix of ``task_id``.

        Args:
            task_id: ``None`` for the P-tuning prefix alone, or the base model.
            text: of the request.
            all_ids: keep all ids of texts out of the prefix; a repetition penalty needs them.

        Raises:
            UnknownTask: there is no such static prompt.
            RequestError: there is nothing to run.
        """
        if task_id is None:
            return from_text(self._tokenizer, self._ptuning, text, **self._kind)
        if (front := self._static.get(task_id)) is None:
            raise UnknownTask(f"there is no task_id {task_id!r}; {self._mend(task_id)}")
        if isinstance(front, StackedPrompt):
            return front.prompt(self._tokenizer, text, all_ids=all_ids)
        return from_text(self._tokenizer, front, text)

    def task(self, task_id: str | None) -> Task | None:
        """The task in front of a request: the static prompt's own, else the P-tuning prefix's."""
        front = self._static.get(task_id) if task_id is not None else None
        return front if isinstance(front, Task) else self._ptuning

    def _mend(self, task_id: str) -> str:
        if not self._static:
            return f"set {FILE_VARIABLE} to a file of static prompts before the model is loaded."
        return suggest(task_id, list(self._static), f"cat ${FILE_VARIABLE}")
