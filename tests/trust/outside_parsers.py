"""`PARSERS`: every parser of the package that takes data from outside, each with samples that it accepts.

A parser takes bytes and an empty folder, and may raise a `ForewordError` and nothing else. A new parser is one entry.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foreword.bank.adapter_file import read_adapter
from foreword.bank.head_file import read_head
from foreword.bank.names import check_name, matching_versions, split_ref
from foreword.bank.prefix_file import read_header, read_prefix, read_prefix_metadata
from foreword.bank.record import parse_record
from foreword.bank.soft_file import read_soft
from foreword.bank.split import Split, parse_weights
from foreword.bank.time_to_live import last_use, parse_duration
from foreword.core import SamplingParams
from foreword.core.constraint import Constraint
from foreword.core.json_reader import parse_json, read_json
from foreword.core.yaml_reader import parse_yaml, read_yaml
from foreword.evaluation.ratings import Ratings
from foreword.evaluation.sampling_params import generation_defaults
from foreword.interop.peft import read_peft
from foreword.interop.ptuning import read_ptuning
from foreword.llamacpp.tokenizer import FileTokenizer
from foreword.models.fingerprint import weight_files
from foreword.models.generation_config import generation_config
from foreword.models.gguf import lineage
from foreword.models.gguf_file import GgufFile
from foreword.models.model_name import check_model_name
from foreword.models.pooling import model_pooling
from foreword.models.text_side import processor_chat_template
from foreword.server.openai.schema import ChatRequest, CompletionRequest
from foreword.server.operations.api_keys import read_keys
from foreword.server.tasks.schema import TaskRequest
from foreword.text.conversation import Conversation, is_conversation
from foreword.text.delimited import Layout
from foreword.text.hub import HubDataset, saved_splits
from foreword.text.long_rows import LongRows
from foreword.text.rows import read_rows
from foreword.text.static_prompts import read_prompts
from foreword.text.template import Template, decode_escapes
from foreword.text.tool_formats import TOOL_FORMATS
from foreword.text.tool_reader import FreeToolReader, ToolListReader
from foreword.text.tools import parse_arguments
from foreword.text.verbalizer import Verbalizer
from foreword.training.distillation.self_study_data import SelfStudyData
from foreword.training.loop.run_dir import RunDir
from foreword.training.many.task_progress import TaskProgress
from foreword.training.many.task_source import JsonlSource
from foreword.training.recipe import Recipe
from foreword.training.recipe_file import RecipeFile
from foreword.training.search.space import SearchSpace

KEPT = Path(__file__).parents[1] / "kept"


@dataclass(frozen=True)
class OutsideParser:
    """A parser under attack.

    Attributes:
        samples: inputs that it accepts.
        parse: reads one; a folder of its own is for files.
        refuses: what it may raise beside a `ForewordError`, where its caller makes a refusal of it.
    """

    samples: tuple[bytes, ...]
    parse: Callable[[bytes, Path], object]
    refuses: tuple[type[Exception], ...] = ()


def _kept(pattern: str, most: int = 6) -> tuple[bytes, ...]:
    found = [file for file in sorted(KEPT.glob(pattern)) if file.is_file() and file.stat().st_size < 200_000]
    assert found, pattern
    return tuple(file.read_bytes() for file in found[:: max(1, len(found) // most)][:most])


def _file(name: str, parse: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """The parser of a file of this name."""

    def run(data: bytes, folder: Path) -> object:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return parse(file)

    return run


def _text(parse: Callable[[str], object]) -> Callable[[bytes, Path], object]:
    """The parser of a text, which may hold halves of surrogate pairs, as those of a command line."""
    return lambda data, folder: parse(data.decode("utf-8", "surrogateescape"))


def _value(parse: Callable[[Any], object]) -> Callable[[bytes, Path], object]:
    """The parser of a value of JSON, as a row or a body has it."""
    return lambda data, folder: parse(read_json(data, "the value"))


def _recipe(file: Path) -> object:
    recipe, known = RecipeFile.read(file), Recipe.keys()
    with recipe.locate_errors():
        values: dict[str, Any] = {key: value for key, value in recipe.values.items() if key in known}
        return Recipe(**{**values, "data": "x"})


def _template(text: str) -> object:
    template = Template.parse(decode_escapes(text))
    return template.fill(dict.fromkeys(template.fields, "x"), answer=False), template.words("x")


def _row(row: Any) -> object:
    return Template.parse("{text}{label?}{join:items}{mask}").fill(row if isinstance(row, dict) else {}, "row 1")


def _conversation(row: Any) -> object:
    return Conversation.read(row) if isinstance(row, dict) and is_conversation(row) else None


def _answer(text: str) -> None:
    """An answer of a model, piece by piece, in every format of calls."""
    for form in TOOL_FORMATS:
        for reader in (FreeToolReader(form, ["f", "g"]), ToolListReader()):
            for start in range(0, min(len(text), 2000), 40):
                reader.push(text[start : start + 40])
            reader.push(text[2000:])
            reader.finish()


def _state(file: Path) -> object:
    run = RunDir(file.parent)
    with run.restoring():
        return run.read_state()


def _history(file: Path) -> object:
    run = RunDir(file.parent)
    return run.read_history(), run.newest_checkpoint()


def _progress(file: Path) -> object:
    progress = TaskProgress(file.parents[1])
    (file.parents[1] / "live-0").write_text("live-0-1")
    (file.parents[1] / "ended-0.jsonl").write_bytes(file.read_bytes())
    return list(progress.snapshot()), progress.records()


def _jsonl_source(file: Path) -> object:
    source = JsonlSource.open(file, "task", check_name)
    return [source.rows(name) for name in source.names]


def _keys(file: Path) -> object:
    return [key.can_access("a") for key in read_keys(file)]


def _refs(text: str) -> object:
    name, version = split_ref(text)
    check_name(name)
    return matching_versions(version or "1", ["0001-0123456789ab"])


def _last_use(data: bytes, folder: Path) -> object:
    return last_use({"created": "2026-01-01T00:00:00Z"}, data, "used")


def _ratings(file: Path) -> object:
    sheet = file.with_name("sheet.csv")
    sheet.write_bytes(_RATING_SHEET)
    return Ratings.read(sheet)


def _rating_sheet(file: Path) -> object:
    file.with_name(file.name + ".key.json").write_bytes(_RATING_KEY)
    return Ratings.read(file)


def _tokenizer(file: Path) -> object:
    (file.parent / "tokenizer.json").write_bytes(_TOKENIZER)
    return FileTokenizer.from_folder(file.parent).eos_token_id


def _gguf(file: Path) -> object:
    read = GgufFile.read(file)
    return read.architecture, read.get("block_count", 0)


def _adapter(name: str, data: bytes, folder: Path) -> object:
    for file in _ADAPTER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / name).write_bytes(data)
    return read_adapter(folder)


def _peft(name: str, data: bytes, folder: Path) -> object:
    for file in _ADAPTER.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / name).write_bytes(data)
    return read_peft(str(folder))


def _ptuning(data: bytes, folder: Path) -> object:
    (folder / "config.json").write_bytes(data)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    return read_ptuning(str(folder))


def _body(model: type[ChatRequest | CompletionRequest]) -> Callable[[Any], object]:
    def parse(body: Any) -> object:
        request = model.model_validate(body)
        return request.parse_tool_choice() if isinstance(request, ChatRequest) else request

    return parse


_HEAD = {"labels": ["a", "b"], "per_token": False}
_RATING_SHEET, _RATING_KEY = (
    (KEPT / "server/ratings.csv").read_bytes(),
    (KEPT / "server/ratings.csv.key.json").read_bytes(),
)
_TOKENIZER = (KEPT / "models/tiny-llama/tokenizer.json").read_bytes()
_ADAPTER = next(iter(sorted((KEPT / "bank/lora").glob("versions/*/adapter"))))
_GGUF_HEADER = (
    b"GGUF\x03\0\0\0" + (1).to_bytes(8, "little") + (3).to_bytes(8, "little")
    + b"".join(
        len(name).to_bytes(8, "little") + name + value
        for name, value in (
            (b"general.architecture", b"\x08\0\0\0" + (5).to_bytes(8, "little") + b"llama"),
            (b"llama.block_count", b"\x04\0\0\0\x01\0\0\0"),
            (b"general.some.numbers", b"\x09\0\0\0\x06\0\0\0" + (4).to_bytes(8, "little") + bytes(16)),
        )
    )
    + (17).to_bytes(8, "little") + b"token_embd.weight" + b"\x02\0\0\0" + (4).to_bytes(8, "little") * 2 + bytes(12)
)  # fmt: skip
_GGUF = _GGUF_HEADER + bytes(-len(_GGUF_HEADER) % 32 + 64)
_ROWS = (
    b'{"text": "a fine film", "label": "good", "n": 1.5}\n{"text": "dull", "label": "bad", "n": null}\n',
    b'[{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": []}]',
    b'{"data": [{"text": "a", "label": 1}]}',
    b'{"columns": ["text", "label"], "data": [["a", "b"]]}',
    b'{"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}',
    b'{"task": "a", "text": "x", "label": "y"}\n{"task": 7, "text": "x", "label": "y"}\n',
)
_CALL = '{"name": "f", "arguments": {"a": [1, {"b": "</tool_call>"}], "c": "x"}}'
_ANSWERS = (
    f"text <tool_call>\n{_CALL}\n</tool_call> more".encode(),
    b"<tool_call><function=f>\n<parameter=a>\n[1, 2]\n</parameter>\n</function></tool_call>",
    f"[TOOL_CALLS] [{_CALL}]".encode(),
    b'[TOOL_CALLS]f[ARGS]{"a": 1}',
    b'{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
    f"[{_CALL}, {_CALL}]".encode(),
)
_MESSAGES = (
    b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "x"}]},'
    b' {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function":'
    b' {"name": "f", "arguments": "{\\"a\\": 1}"}}]}, {"role": "tool", "tool_call_id": "1", "content": "y"},'
    b' {"role": "assistant", "content": "z", "weight": 1}], "tools": [{"type": "function", "function": {"name": "f",'
    b' "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}]}',
    b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}',
    b'{"prompt": "a", "response": "b", "history": [["c", "d"]]}',
    b'{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}',
)
_CHAT = (
    b'{"model": "m", "temperature": 0.5, "n": 2, "stop": ["a"], "logit_bias": {"5": 1}, "stream": true, "seed": 1,'
    b' "stream_options": {"include_usage": true}, "max_tokens": 5, "chat_template_kwargs": {"a": 1}, "tool_choice":'
    b' {"type": "function", "function": {"name": "f"}}, "response_format": {"type": "json_schema", "json_schema":'
    b' {"name": "n", "schema": {"type": "object"}}}, ' + _MESSAGES[0][1:]
)
_COMPLETION = (
    b'{"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "logprobs": 2, "echo": false, "structured_outputs":'
    b' {"choice": ["a", "b"]}, "top_k": 5, "min_p": 0.1, "stop_token_ids": [1], "ignore_eos": true, "user": "u"}'
)
_YAML = (
    *_kept("recipes/*.yaml", 8),
    b'data: x.jsonl\nverbalizer: {yes: " good", no: [" bad", " awful"]}\nlr: 5e-3\nepochs: 2.5\nsearch: {lr: [1]}\n',
)
_SPACE = (b'{"lr": [0.001, 0.01], "length": {"low": 1, "high": 9, "log": true}, "method": ["lora"]}',)

PARSERS: dict[str, OutsideParser] = {
    "json": OutsideParser(_ROWS[1:5], lambda data, folder: parse_json(data), (ValueError,)),
    "yaml": OutsideParser(_YAML, _text(parse_yaml), (ValueError,)),
    "rows.jsonl": OutsideParser(_ROWS, _file("rows.jsonl", read_rows)),
    "rows.json": OutsideParser(_ROWS, _file("rows.json", read_rows)),
    "rows.csv": OutsideParser((b'text,label\n"a ""b""",x\nc,y\n', b"text;label\na;b\n"), _file("rows.csv", read_rows)),
    "rows.tsv": OutsideParser((b'text\tlabel\n"a"\tx\nc\ty\n',), _file("rows.tsv", read_rows)),
    "rows.jsonl.gz": OutsideParser(
        (gzip.compress(_ROWS[0], mtime=0),),
        _file("rows.jsonl.gz", read_rows),
    ),
    "rows of tasks": OutsideParser(_ROWS[-1:], _file("rows.jsonl", _jsonl_source)),
    "row": OutsideParser((b'{"text": "a", "label": 5, "items": ["a", ["b", 1.5]]}',), _value(_row)),
    "conversation": OutsideParser(_MESSAGES, _value(_conversation)),
    "static prompts": OutsideParser(
        (b'[{"task_id": 1, "prompt": "a\nb"}, {"task_id": "b", "system": "x"}]', b'{"task_id": 1, "prompt": "a"}\n'),
        _file("prompts.json", read_prompts),
    ),
    "recipe": OutsideParser(_YAML, _file("recipe.yaml", _recipe)),
    "search space": OutsideParser(_SPACE, _value(SearchSpace.parse)),
    "--vary": OutsideParser(
        (b"[1e-3, 5e-3]", b"{low: 1, high: 9}"),
        _text(lambda text: SearchSpace.parse({"lr": read_yaml(text, "--vary")})),
    ),
    "template": OutsideParser(
        (b"{text} is{mask}", b"{a?}\\n{{x}} {field:a:b} {join:c}{target:d}", b"{soft:12} {text}{mask}"),
        _text(_template),
    ),
    "verbalizer": OutsideParser((b'{"good": " great", "bad": [" bad", " awful"]}',), _text(Verbalizer.parse)),
    "columns": OutsideParser((b"text,label", b"a"), _text(lambda text: Layout.parse(text, text[:1]))),
    "long rows": OutsideParser((b"cut text", b"skip"), _text(LongRows.parse)),
    "hub name": OutsideParser((b"hub:owner/name/config@main:train[:10]+test",), _text(HubDataset.parse)),
    "data source": OutsideParser(
        (str(KEPT / "data/reviews.jsonl").encode(), b"~/rows.csv"),
        _text(lambda text: None if text.startswith("hub:") else read_rows(text)),
    ),
    "model name": OutsideParser((b"owner/name", b"tiny"), _text(check_model_name)),
    "saved data set": OutsideParser(
        (b'{"splits": ["train", "test"]}',), _file("dataset_dict.json", lambda file: saved_splits(file.parent))
    ),
    "answer": OutsideParser(_ANSWERS, _text(_answer)),
    "arguments": OutsideParser((b'{"a": {"b": [1]}}',), _text(partial(parse_arguments, "arguments"))),
    "schema": OutsideParser(
        (b'{"type": "object", "properties": {"a": {"type": "integer"}}}',), _text(Constraint.json_schema)
    ),
    "chat body": OutsideParser((_CHAT,), _value(_body(ChatRequest)), (ValidationError,)),
    "completion body": OutsideParser((_COMPLETION,), _value(_body(CompletionRequest)), (ValidationError,)),
    "task body": OutsideParser(
        (b'{"name": "a", "prompt": "x", "ttl": "7d", "top_p": 0.5}',),
        lambda data, folder: TaskRequest.model_validate_json(data),
        (ValidationError,),
    ),
    "generation defaults": OutsideParser(
        (b'{"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_tokens": 7, "stop": ["a"]}',),
        _value(lambda value: generation_defaults(**value) if isinstance(value, dict) else None),
        (TypeError,),
    ),
    "API keys": OutsideParser(_kept("server/keys.jsonl"), _file("keys.jsonl", _keys)),
    "task.json": OutsideParser(
        _kept("bank/reviews/versions/*/task.json"), lambda data, folder: parse_record(data, "task.json", "reviews")
    ),
    "split": OutsideParser(
        (
            b'{"format": 1, "current": "0001-0123456789ab",'
            b' "weights": {"0001-0123456789ab": 1, "0002-0123456789ab": 2}}',
        ),
        lambda data, folder: Split.parse(data, "split"),
    ),
    "weights": OutsideParser((b"0002=0.1",), _text(lambda text: parse_weights([text]))),
    "time to live": OutsideParser((b"7d", b"90"), _text(parse_duration)),
    "last use": OutsideParser((b"2026-01-31T09:30:00Z\n",), _last_use),
    "name@version": OutsideParser((b"reviews@0001", b"a@0001-0123456789ab"), _text(_refs)),
    "prefix": OutsideParser(_kept("bank/*/versions/*/prefix.safetensors"), _file("p.safetensors", read_prefix)),
    "prefix header": OutsideParser(
        _kept("bank/*/versions/*/prefix.safetensors"),
        _file("p.safetensors", lambda file: (read_header(file), read_prefix_metadata(file))),
    ),
    "head": OutsideParser(
        _kept("bank/*/versions/*/head.safetensors"),
        _file("head.safetensors", lambda file: read_head(file, _HEAD, 16)),
    ),
    "soft": OutsideParser(
        _kept("bank/*/versions/*/head.safetensors"),
        _file("soft.safetensors", lambda file: read_soft(file, 16, "{soft:2}{mask}")),
    ),
    "adapter config": OutsideParser(
        ((_ADAPTER / "adapter_config.json").read_bytes(),), partial(_adapter, "adapter_config.json")
    ),
    "adapter": OutsideParser(
        ((_ADAPTER / "adapter_model.safetensors").read_bytes(),), partial(_adapter, "adapter_model.safetensors")
    ),
    "PEFT config": OutsideParser(
        ((_ADAPTER / "adapter_config.json").read_bytes(), b'{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}'),
        partial(_peft, "adapter_config.json"),
    ),
    "PEFT weights": OutsideParser(
        ((_ADAPTER / "adapter_model.safetensors").read_bytes(),), partial(_peft, "adapter_model.safetensors")
    ),
    "P-tuning config": OutsideParser((b'{"pre_seq_len": 4, "num_layers": 2, "kv_channels": 8}',), _ptuning),
    "GGUF": OutsideParser((_GGUF,), _file("m.gguf", _gguf)),
    "rating key": OutsideParser((_RATING_KEY,), _file("sheet.csv.key.json", _ratings)),
    "rating sheet": OutsideParser((_RATING_SHEET,), _file("sheet.csv", _rating_sheet)),
    "conversations.json": OutsideParser(
        _kept("runs/short/conversations.json"), _file("conversations.json", SelfStudyData.load)
    ),
    "state.json": OutsideParser((b'{"step": 1, "trigger": [1, 2], "log": []}',), _file("state.json", _state)),
    "history.json": OutsideParser((b'{"log": [{"step": 1, "loss": 0.5}]}',), _file("history.json", _history)),
    "lanes.json": OutsideParser(
        (b'[{"task": "a", "inputs": "x", "state": {"step": 1}}]', b'{"task": "a", "status": "learned"}\n'),
        _file("live-0-1/lanes.json", _progress),
    ),
    "generation_config.json": OutsideParser(
        _kept("models/*/generation_config.json"),
        _file("generation_config.json", lambda file: SamplingParams(**generation_config(str(file.parent)))),
    ),
    "model.safetensors.index.json": OutsideParser(
        (b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}',),
        _file("model.safetensors.index.json", lambda file: weight_files(file.parent)),
    ),
    "modules.json": OutsideParser(
        (b'[{"idx": 0, "path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]',),
        _file("modules.json", lambda file: model_pooling(str(file.parent), causal=True)),
    ),
    "chat_template.json": OutsideParser(
        (b'{"chat_template": "{{ messages }}"}',),
        _file("chat_template.json", lambda file: processor_chat_template(str(file.parent))),
    ),
    "parents of a GGUF file": OutsideParser(
        (b'{"parents": ["a"]}',), _file("foreword.json", lambda file: lineage(file.parent))
    ),
    "tokenizer_config.json": OutsideParser(
        _kept("models/*/tokenizer_config.json"), _file("tokenizer_config.json", _tokenizer)
    ),
}
