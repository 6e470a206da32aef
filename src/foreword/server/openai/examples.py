"""Responses of the completions endpoints that the OpenAPI page shows."""

from __future__ import annotations

from foreword.server.schema import example_response

_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 2,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 5},
}
CHAT_RESPONSE = example_response(
    {
        "id": "chatcmpl-1f",
        "object": "chat.completion",
        "created": 1769851800,
        "model": "support",
        "system_fingerprint": "support@0001-3f9a0c1b2d4e",
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
    streamed=True,
)
COMPLETION_RESPONSE = example_response(
    {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1769851800,
        "model": "support",
        "system_fingerprint": "support@0001-3f9a0c1b2d4e",
        "choices": [{"index": 0, "text": " there was", "logprobs": None, "finish_reason": "length"}],
        "usage": _USAGE,
    },
    streamed=True,
)
RESPONSES_RESPONSE = example_response(
    {
        "id": "resp_1f",
        "object": "response",
        "created_at": 1769851800,
        "status": "completed",
        "model": "support",
        "system_fingerprint": "support@0001-3f9a0c1b2d4e",
        "output": [
            {
                "id": "msg_1f",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "On its way.", "annotations": [], "logprobs": []}],
            }
        ],
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 14,
        },
        "store": False,
    },
    streamed=True,
)
