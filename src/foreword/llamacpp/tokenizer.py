"""`FileTokenizer`: a tokenizer by the library tokenizers alone, with what Foreword asks of Transformers' fast ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from foreword.errors import UnsupportedModel
from foreword.llamacpp.gguf_file import GgufFile

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_IN_GGUF = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_CONTROL, _USER = 3, 4
"""Kinds of tokens in GGUF files: written by no text, and written as they are."""
_AS_GPT2 = ("gpt-2", "smollm")
"""Rules that cut a text as GPT-2's do; smollm also cuts between digits, of which its vocabulary joins none."""


@dataclass(frozen=True)
class Encoded:
    input_ids: list[int]


class FileTokenizer:
    """Reads and writes tokens as the model's tokenizer in Transformers does; what it made is held against the
    fingerprint of whatever was made with that one.

    Attributes:
        backend_tokenizer: of the library tokenizers.
        special_tokens_map: ``eos_token`` and the like, by name.
        chat_template: in Jinja, or ``None``.
    """

    def __init__(self, backend: Tokenizer, special: Mapping[str, str], chat_template: str | None) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend_tokenizer = backend
        self.special_tokens_map = dict(special)
        self.chat_template = chat_template

    @classmethod
    def of_folder(cls, folder: Path) -> FileTokenizer:
        """That of a model folder: ``tokenizer.json``, and what lies beside it. Raises UnsupportedModel."""
        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = _json(folder / "tokenizer_config.json")
            jinja = folder / "chat_template.jinja"
            template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
        except Exception as error:  # the library raises plain ones
            raise UnsupportedModel(f"the tokenizer in {folder} cannot be read ({error}); fetch it again.") from error
        special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
        added = [
            AddedToken(text, special=True, normalized=False)
            for text in special.values()
            if backend.token_to_id(text) is None
        ]
        backend.add_special_tokens(added)
        return cls(backend, special, template if isinstance(template, str) else None)

    @classmethod
    def of_gguf(cls, file: GgufFile) -> FileTokenizer:
        """That of a GGUF file, if it is a byte-level BPE that cuts texts as GPT-2's does. Raises UnsupportedModel for
        others, whose rules the file does not hold."""
        fields = file.fields
        kind, rules = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        if kind != "gpt2" or rules not in _AS_GPT2 or "tokenizer.ggml.merges" not in fields:
            raise UnsupportedModel(
                f"the tokenizer in {file.path.name} (model {kind}, rules {rules}) is not read without its own files; "
                "put the model's tokenizer.json and tokenizer_config.json beside the file."
            )
        tokens = fields["tokenizer.ggml.tokens"]
        merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        kinds = fields.get("tokenizer.ggml.token_type", ())
        for kind, special in ((_CONTROL, True), (_USER, False)):
            texts = [token for token, its in zip(tokens, kinds, strict=False) if its == kind]
            added = [AddedToken(text, special=special, normalized=False) for text in texts]
            (backend.add_special_tokens if special else backend.add_tokens)(added)
        ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in _IN_GGUF.items()}
        named = {name: tokens[index] for name, index in ids.items() if index is not None}
        return cls(backend, named, fields.get("tokenizer.chat_template"))

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special_tokens_map.get("eos_token")
        return None if eos is None else self.backend_tokenizer.token_to_id(eos)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str) -> Encoded:
        return Encoded(self.encode(text))

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True, verbose: bool = False) -> list[int]:
        """``verbose`` would warn of long texts in Transformers; nothing here ever does."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Raises UnsupportedModel for cleaning up, which changes what a model wrote."""
        if clean_up_tokenization_spaces:
            raise UnsupportedModel("this tokenizer gives texts as they are; leave clean_up_tokenization_spaces out.")
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self.backend_tokenizer.id_to_token(index) for index in ids]

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The text of a conversation. Raises jinja2.TemplateError where the template refuses it."""
        assert not tokenize
        assert self.chat_template is not None
        given = {**self.special_tokens_map, "add_generation_prompt": add_generation_prompt}
        messages = [dict(message) for message in conversation]
        return _compiled(self.chat_template).render(messages=messages, tools=None, documents=None, **given)


@cache
def _compiled(source: str) -> Any:
    """A template with the names that Transformers gives to templates; they come with models, so they run in a sandbox
    that changes nothing."""
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant said, for training; here it is what it holds."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _content(token: Any) -> str:
    """Of a special token in tokenizer_config.json: a text, or an object with one."""
    return token["content"] if isinstance(token, dict) else str(token)
