"""`PromptFormat`: the template and the verbalizer of an imported task, which checkpoints do not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foreword.errors import UsageError
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer

_FIELD, _WORDS = "{text}", "{tokens}"


@dataclass(frozen=True)
class PromptFormat:
    """Template and verbalizer; both ``None`` for a task that continues plain text.

    Attributes:
        template: its source, or ``None``.
        verbalizer: words of every label, or ``None``.
    """

    template: str | None = None
    verbalizer: Mapping[str, tuple[str, ...]] | None = None

    @classmethod
    def parse(cls, template: str | None, verbalizer: str | Mapping[str, object] | None) -> PromptFormat:
        """Parse what a user gave.

        Args:
            template: source of a template, escapes decoded.
            verbalizer: words of every label, as a mapping, JSON, or the path of a JSON file.

        Raises:
            TemplateError, VerbalizerError: one of them is malformed.
            UsageError: they do not fit together, or the template has soft tokens, which only the checkpoint has.
        """
        parsed = Template.parse(template) if template is not None else None
        if parsed is not None and parsed.num_soft_tokens:
            raise UsageError("the soft tokens come from the checkpoint; take {soft:N} out of --template.")
        if (parsed is not None and parsed.has_mask) != (verbalizer is not None):
            raise UsageError("a --template with {mask} and a --verbalizer go together; give both, or neither.")
        words = dict(Verbalizer.parse(verbalizer).words) if verbalizer is not None else None
        return cls(template, words)

    def for_head(self, *, per_token: bool) -> PromptFormat:
        """The same for a checkpoint with a head; without a template, of the field ``text`` or the words ``tokens``.

        Raises:
            UsageError: there is a verbalizer, too.
            TemplateError: the template has a place for an answer, or of a head over words more than one field.
        """
        if self.verbalizer is not None:
            raise UsageError("the checkpoint has a head of its own, which labels; leave {mask} and --verbalizer out.")
        template = Template.parse(self.template or (_WORDS if per_token else _FIELD))
        if per_token:
            template.single_field()
        elif template.target is not None:
            raise UsageError("the checkpoint has a head of its own, which labels; take {target:...} out of --template.")
        return PromptFormat(template.source)

    def with_soft_tokens(self, length: int) -> PromptFormat:
        """The same with ``length`` soft tokens in front; without a template, of the field ``text``."""
        return PromptFormat(f"{{soft:{length}}}{self.template or _FIELD}", self.verbalizer)
