"""`FileTokenizer`: a tokenizer without Transformers, with the methods of its fast tokenizers that Foreword uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from foreword.core.json_reader import read_json_object
from foreword.errors import ModelError, UnsupportedModel
from foreword.models.gguf_file import GgufFile

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GGUF_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_CONTROL, _USER_DEFINED = 3, 4
"""``LLAMA_TOKEN_TYPE``: special tokens, and added ones that are part of texts."""
_GPT2_PRE_TOKENIZERS = ("gpt-2", "smollm")
"""They split a text as GPT-2's does; smollm also splits between digits, of which its vocabulary joins none."""


@dataclass(frozen=True)
class Encoding:
    """As Transformers' ``BatchEncoding`` of one text."""

    input_ids: list[int]


class FileTokenizer:
    """Encodes and decodes as the model's tokenizer in Transformers; the fingerprints of both are compared.

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
    def from_folder(cls, folder: Path) -> FileTokenizer:
        """Read ``tokenizer.json`` and the files beside it. Raises UnsupportedModel if they cannot be read."""
        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = _read_json(folder / "tokenizer_config.json")
            jinja = folder / "chat_template.jinja"
            template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
            special = {name: _token_text(config[name]) for name in _SPECIAL_TOKENS if config.get(name) is not None}
        except Exception as error:  # the library raises plain ones
            raise UnsupportedModel(f"the tokenizer in {folder} cannot be read ({error}); fetch it again.") from error
        added = [
            AddedToken(text, special=True, normalized=False)
            for text in special.values()
            if backend.token_to_id(text) is None
        ]
        backend.add_special_tokens(added)
        return cls(backend, special, template if isinstance(template, str) else None)

    @classmethod
    def from_gguf(cls, file: GgufFile) -> FileTokenizer:
        """Read a byte-level BPE that splits texts as GPT-2's does from a GGUF file.

        Raises UnsupportedModel for others: the file names their rules, but does not hold them.
        """
        fields = file.fields
        model, rules = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
        if model != "gpt2" or rules not in _GPT2_PRE_TOKENIZERS or "tokenizer.ggml.merges" not in fields:
            raise UnsupportedModel(
                f"the tokenizer in {file.path.name} (model {model}, rules {rules}) is not read without its own files; "
                "put the model's tokenizer.json and tokenizer_config.json beside the file."
            )
        tokens = fields["tokenizer.ggml.tokens"]
        merges = [tuple(line.split(" ", 1)) for line in fields["tokenizer.ggml.merges"]]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        types = fields.get("tokenizer.ggml.token_type", ())
        for token_type, special in ((_CONTROL, True), (_USER_DEFINED, False)):
            texts = [token for token, its in zip(tokens, types, strict=False) if its == token_type]
            added = [AddedToken(text, special=special, normalized=False) for text in texts]
            (backend.add_special_tokens if special else backend.add_tokens)(added)
        ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in _GGUF_SPECIAL_TOKENS.items()}
        special_tokens = {name: tokens[index] for name, index in ids.items() if index is not None}
        return cls(backend, special_tokens, fields.get("tokenizer.chat_template"))

    @property
    def eos_token_id(self) -> int | None:
        eos = self.special_tokens_map.get("eos_token")
        return None if eos is None else self.backend_tokenizer.token_to_id(eos)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str) -> Encoding:
        return Encoding(self.encode(text))

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True, verbose: bool = False) -> list[int]:
        """``verbose`` warns of long texts in Transformers; here it does nothing."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Raises UnsupportedModel for cleaning up, which changes the text of the tokens."""
        if clean_up_tokenization_spaces:
            raise UnsupportedModel("this tokenizer gives texts as they are; leave clean_up_tokenization_spaces out.")
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        return [self.backend_tokenizer.id_to_token(index) for index in ids]

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **kwargs: Any,
    ) -> str:
        """The text of a conversation. Raises jinja2.TemplateError where the template refuses it."""
        assert not tokenize
        assert self.chat_template is not None
        variables = {**self.special_tokens_map, **kwargs, "add_generation_prompt": add_generation_prompt}
        messages = [dict(message) for message in conversation]
        return _compile_template(self.chat_template).render(messages=messages, tools=tools, documents=None, **variables)


@cache
def _compile_template(source: str) -> Any:
    """Compile a chat template with the functions that Transformers gives to templates.

    They come with models, so they run in jinja2's immutable sandbox.
    """
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's text, for training; here only its content counts."""

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


def _read_json(file: Path) -> dict[str, Any]:
    return read_json_object(file, error=ModelError, mend="download it again") if file.is_file() else {}


def _token_text(token: Any) -> str:
    """The text of a special token in tokenizer_config.json, which is a string or an object with ``content``."""
    return str(token["content"] if isinstance(token, dict) else token)
