"""What the OpenAPI page says of every route besides its own answer."""

from __future__ import annotations

from typing import Any

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "One sentence: what is wrong, and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_SAID = {
    400: "The request is wrong; the sentence says where.",
    401: "There is no key, or one that is not known.",
    403: "The key does not reach so far.",
    404: "There is no such model, task, version or path.",
    405: "Another method is meant.",
    409: "The task belongs to another model, or the name is taken.",
    413: "The body is too large.",
    422: "Never sent: what cannot be read is 400.",
    429: "Too many requests or tokens; Retry-After says when to come again.",
    500: "Something went wrong inside; the log says more.",
    503: "The engine does not answer any more.",
    504: "The answer took longer than allowed.",
}

EVERYWHERE: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}} for status, text in _SAID.items()
}

_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 2,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 5},
}
_VERSION = "0001-3f9a0c1b2d4e"
_TASK = {
    "object": "task",
    "name": "support",
    "current": _VERSION,
    "version": _VERSION,
    "kind": "system",
    "method": "static",
    "template": None,
    "labels": [],
    "generation": {},
    "bytes": 23040000,
    "created": "2026-01-31T09:30:00Z",
    "metrics": None,
    "pinned": False,
    "resident": True,
    "versions": [_VERSION],
}


def _example(example: object, **more: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "The answer.", "content": {"application/json": {"example": example}, **more}}}


CHAT = _example(
    {
        "id": "chatcmpl-1f",
        "object": "chat.completion",
        "created": 1769851800,
        "model": "support",
        "system_fingerprint": f"support@{_VERSION}",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "On its way.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    },
    **{"text/event-stream": {}},
)
COMPLETION = _example(
    {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1769851800,
        "model": "support",
        "system_fingerprint": f"support@{_VERSION}",
        "choices": [{"index": 0, "text": " there was", "logprobs": None, "finish_reason": "length"}],
        "usage": _USAGE,
    },
    **{"text/event-stream": {}},
)
CLASSES = _example(
    {
        "object": "list",
        "model": "sentiment",
        "data": [{"index": 0, "label": "positive", "probs": {"positive": 0.97, "negative": 0.03}}],
        "usage": {"prompt_tokens": 20, "total_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}},
    }
)
TAGS = _example(
    {
        "object": "list",
        "model": "slots",
        "data": [{"index": 0, "words": ["play", "jazz"], "tags": ["O", "B-genre"], "probs": [0.99, 0.95]}],
        "usage": {"prompt_tokens": 18, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 16}},
    }
)
TOKENS = _example({"count": 4, "prefix_length": 0, "max_model_len": 8192, "tokens": [19556, 28, 905, 17]})
TASK = _example(_TASK)
TASKS = _example({"object": "list", "data": [_TASK]})
PUBLISHED: dict[int | str, dict[str, Any]] = {
    201: {"description": "The new version.", "content": {"application/json": {"example": _TASK}}}
}
