"""The corpus through its public names: what a seed gives, what held-out rows may share, how long rows are."""

import json
import re
from collections import Counter

import pytest

from foreword.demo.corpus import (
    CATEGORIES,
    DEFAULT_WORDS,
    INSTRUCTION,
    PATTERNS,
    REPLIES,
    SIGNATURES,
    TEMPLATE,
    TYPOS,
    CustomerMessage,
    Language,
    base_prompt,
    category_of,
    generate,
    split,
)
from foreword.errors import UsageError

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def rows() -> list[CustomerMessage]:
    return generate(1000, seed=7)


@pytest.fixture(scope="module")
def halves() -> tuple[list[CustomerMessage], list[CustomerMessage]]:
    return split(320, 80, seed=7)


def built_from(message: str, pattern: str) -> bool:
    """Whether `message` was built from `pattern`, typing slips and manners aside."""
    for right, wrong in TYPOS.items():
        message = message.replace(wrong, right)
    filled = ".+?".join(re.escape(part) for part in re.split(r"\{\w+\}", pattern))
    return re.search(filled, message) is not None


def from_held_out(row: CustomerMessage) -> bool:
    return any(built_from(row.message, pattern) for pattern in PATTERNS[row.language][row.category].held_out)


def test_a_seed_names_the_rows():
    assert generate(100, seed=1) == generate(100, seed=1)
    assert generate(100, seed=1) != generate(100, seed=2)
    assert split(50, 20, seed=1) == split(50, 20, seed=1)


def test_the_first_row_of_a_seed_is_the_same_on_every_machine():
    # Published scores name a seed, so a change here asks for new scores.
    assert generate(5, seed=0)[0] == CustomerMessage(
        message="Can I get a receipt for the garden bench in my company name?",
        category="billing",
        reply="Thanks! We will check the recent charge today and email you. — Mina, Foreword Care",
        language="en",
    )


@pytest.mark.parametrize("count", [0, 1, 5, 37, 200])
def test_count_and_balance(count: int):
    made = generate(count, seed=3)
    counted = Counter(row.category for row in made)
    assert len(made) == count
    assert all(abs(counted[category] - count / len(CATEGORIES)) < 1 for category in CATEGORIES)


def test_each_category_is_one_quarter_chinese(rows: list[CustomerMessage]):
    chinese = Counter(row.category for row in rows if row.language == "zh")
    assert chinese == dict.fromkeys(CATEGORIES, 50)
    assert all(bool(CHINESE.search(row.message)) == (row.language == "zh") for row in rows)
    assert all(bool(CHINESE.search(row.reply)) == (row.language == "zh") for row in rows)


def test_no_message_twice(rows: list[CustomerMessage]):
    assert len({row.message for row in rows}) == len(rows)


def test_split_shares_no_message(halves: tuple[list[CustomerMessage], list[CustomerMessage]]):
    train, held_out = halves
    messages = {row.message for row in train + held_out}
    assert (len(train), len(held_out), len(messages)) == (320, 80, 400)


def test_held_out_patterns_are_held_out(halves: tuple[list[CustomerMessage], list[CustomerMessage]]):
    train, held_out = halves
    assert not any(from_held_out(row) for row in train)
    share = sum(from_held_out(row) for row in held_out) / len(held_out)
    assert 0.35 <= share <= 0.65
    assert {row.category for row in held_out if from_held_out(row)} == set(CATEGORIES)


def test_patterns_are_many_and_each_belongs_to_one_category():
    every: list[str] = []
    fewest: dict[Language, int] = {"en": 14, "zh": 7}
    for language in PATTERNS:
        for category in CATEGORIES:
            patterns = PATTERNS[language][category]
            together = patterns.common + patterns.held_out
            assert len(together) >= fewest[language]
            every += together
    assert len(set(every)) == len(every)


def test_lengths(rows: list[CustomerMessage]):
    for row in rows:
        reply = row.reply.removesuffix(SIGNATURES[row.language]).strip()
        assert reply != row.reply
        if row.language == "en":
            assert 6 <= len(row.message.split()) <= 18, row.message
            assert len(reply.split()) <= 14, reply
        else:
            assert 8 <= len(row.message) <= 20, row.message
            assert len(reply) <= 16, reply


def test_a_reply_repeats_what_its_message_names(rows: list[CustomerMessage]):
    for row in rows:
        before, _, after = REPLIES[row.language][row.category].partition("{")
        if not after:
            continue
        slot, _, after = after.partition("}")
        named = row.reply.removeprefix(before).removesuffix(f"{after} {SIGNATURES[row.language]}")
        assert named in row.message or named == DEFAULT_WORDS[row.language][slot], row


def test_a_product_question_always_names_its_product(rows: list[CustomerMessage]):
    assert not any(DEFAULT_WORDS[row.language]["item"] in row.reply for row in rows if row.category == "product")


def test_nothing_is_left_unfilled_and_nothing_spans_lines(rows: list[CustomerMessage]):
    assert not any(mark in row.message + row.reply for row in rows for mark in "{}\n")


def test_a_few_english_messages_hold_a_typo(rows: list[CustomerMessage]):
    slips = sum(any(wrong in row.message for wrong in TYPOS.values()) for row in rows)
    assert 0 < slips < 0.06 * len(rows)


def test_category_of_undoes_answer(rows: list[CustomerMessage]):
    for row in rows:
        assert row.answer == f" {row.category}\n{row.reply}"
        assert category_of(row.answer) == row.category


@pytest.mark.parametrize(
    ("answer", "category"),
    [("", ""), (" Billing \nThanks!", "billing"), ("returns", "returns"), ("\n billing", "")],
)
def test_category_of_reads_only_the_first_line(answer: str, category: str):
    assert category_of(answer) == category


def test_json_is_one_line(rows: list[CustomerMessage]):
    line = rows[0].to_json()
    assert list(line) == ["message", "category", "reply", "language", "answer"]
    assert json.loads(json.dumps(line, ensure_ascii=False)) == line
    assert CustomerMessage(line["message"], line["category"], line["reply"], rows[0].language) == rows[0]


def test_the_template_meets_the_answer(rows: list[CustomerMessage]):
    text = TEMPLATE.replace("{message}", rows[0].message).replace("{target:answer}", rows[0].answer)
    assert text.endswith(f"\nCategory and reply: {rows[0].category}\n{rows[0].reply}")


def test_the_written_instruction_tells_all_that_the_corpus_teaches(rows: list[CustomerMessage]):
    assert INSTRUCTION.count("{message}") == 1
    assert all(category in INSTRUCTION for category in CATEGORIES)
    assert all(signature in INSTRUCTION for signature in SIGNATURES.values())
    assert all(word in INSTRUCTION for words in DEFAULT_WORDS.values() for word in words.values())
    assert not any(row.message in INSTRUCTION for row in rows)
    assert INSTRUCTION.endswith("\nCustomer message: {message}\nCategory and reply:")
    prompt = base_prompt("Is {this} left alone?")
    assert prompt.endswith("\nCustomer message: Is {this} left alone?\nCategory and reply:")


def test_too_many_rows_is_one_clear_sentence():
    with pytest.raises(UsageError, match="ask for fewer rows"):
        generate(20_000, seed=0)
