"""The tokens of answers are those that the template renders behind what a request sends, or the row is refused."""

from __future__ import annotations

import copy

import pytest

from foreword.errors import DataError
from foreword.text import chat
from foreword.text.assistant_turns import assistant_turns, bare_request, join_turns
from foreword.text.conversation import Conversation
from foreword.text.prompt import Prompt
from text.small_tokenizers import TOKENIZERS

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% set parts = m['content'].split('</think>') %}"
    "{% if loop.last and parts | length > 1 %}<think>\n{{ parts[0].replace('<think>', '').strip() }}\n</think>\n\n"
    "{% endif %}{{ parts[-1].strip() }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(name: str, template: str | None = None):
    tokenizer = copy.deepcopy(TOKENIZERS[name])
    tokenizer.chat_template = template or tokenizer.chat_template
    return tokenizer


def talk(*texts: str, system: str | None = None, learn: str = "all") -> Conversation:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    first = [{"role": "system", "content": system}] if system is not None else []
    return Conversation.read({"messages": [*first, *messages]}, learn)


def joined(tokenizer, conversation: Conversation) -> list[Prompt]:
    return join_turns(assistant_turns(tokenizer, conversation, bare_request(tokenizer)))


def learned(tokenizer, prompt: Prompt) -> str:
    """The tokens that are learned, as text; every one stands behind a place that predicts it."""
    return tokenizer.decode([prompt.token_ids[place + 1] for place in prompt.output_indices])


@pytest.mark.parametrize("system", [None, "Be great."])
def test_a_conversation_is_one_prompt_of_the_whole_rendered_text(system):
    tokenizer = with_template("byte_level")
    conversation = talk("hello", "a great film", "再见", "the answer is 退款", system=system)
    (prompt,) = joined(tokenizer, conversation)
    whole = chat.render(tokenizer, conversation.messages, add_generation_prompt=False)
    assert prompt.token_ids == tuple(chat.encode(tokenizer, whole.rstrip("\n")))
    assert learned(tokenizer, prompt) == "a great film<|im_end|>the answer is 退款<|im_end|>"
    assert ("Be kind." in whole) == (system is None)  # the template's own system turn is never learned


def test_a_template_that_closes_no_turn_ends_with_the_end_of_text():
    """The history holds no end, so every answer has a prompt of its own; what the template writes behind an answer (in
    this one what asks for the next) is not learned."""
    tokenizer = with_template("metaspace")
    first, second = joined(tokenizer, talk("hello", "a great film", "and", "a bad film"))
    assert first.token_ids[-1] == second.token_ids[-1] == tokenizer.eos_token_id
    assert learned(tokenizer, first) == "a great film</s>"
    assert learned(tokenizer, second) == "a bad film</s>"
    history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a great film"}]
    rendered = chat.render(tokenizer, [*history, {"role": "user", "content": "and"}])
    assert second.token_ids[: second.output_indices[0] + 1] == tuple(chat.encode(tokenizer, rendered))


@pytest.mark.parametrize("answer", ["n", "end", "im", "|>", "d"])
def test_an_answer_that_stands_in_the_name_of_the_end_is_learned_alone(answer):
    tokenizer = with_template("byte_level")
    (prompt,) = joined(tokenizer, talk("a", answer, "b", answer))
    assert learned(tokenizer, prompt) == f"{answer}<|im_end|>" * 2


def test_the_last_turn_alone():
    tokenizer = with_template("byte_level")
    (prompt,) = joined(tokenizer, talk("a", "great", "b", "bad", learn="last"))
    assert learned(tokenizer, prompt) == "bad<|im_end|>"


def test_reasoning_that_the_history_drops_makes_prompts_of_their_own():
    tokenizer = with_template("byte_level", THINKING)
    first, second = joined(tokenizer, talk("a", "<think>hm</think>great", "b", "<think>ha</think>bad"))
    assert learned(tokenizer, first) == "<think>\nhm\n</think>\n\ngreat<|im_end|>"
    assert learned(tokenizer, second) == "<think>\nha\n</think>\n\nbad<|im_end|>"
    assert "hm" not in tokenizer.decode(second.token_ids)


def test_a_template_that_marks_its_answers_marks_the_same_tokens():
    tokenizer = with_template("byte_level", MARKED)
    conversation = talk("a", "great film", "b", "bad 退款", system="Be kind.")
    (prompt,) = joined(tokenizer, conversation)
    marked = tokenizer.apply_chat_template(
        list(conversation.messages), return_dict=True, return_assistant_tokens_mask=True
    )
    places = [index - 1 for index, answer in enumerate(marked["assistant_masks"]) if answer]
    assert list(prompt.output_indices) == places
    assert list(prompt.token_ids) == marked["input_ids"][: len(prompt.token_ids)]


@pytest.mark.parametrize(
    ("template", "texts", "said"),
    [
        (
            THINKING.replace("loop.last", "false"),
            ("a", "<think>hm</think>b"),
            "message 2 cannot be learned: .* leaves out 2 characters",
        ),
        (
            MARKED.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif"),
            ("a", "b"),
            "message 2 cannot be lined up: the chat template asks for an answer with '<think>",
        ),
        (None, ("a", "b<|im_end|>c"), r"message 2 holds '<\|im_end\|>', which ends an answer"),
        ("{% for m in messages %}{{ m['content'] }} {% endfor %}", ("a", "great"), "'great ' merges with the text"),
    ],
    ids=["dropped", "generation", "end", "merges"],
)
def test_what_cannot_be_lined_up_is_refused(template, texts, said):
    tokenizer = with_template("byte_level", template)
    with pytest.raises(DataError, match=said):
        joined(tokenizer, talk(*texts))
