"""The template language: parts, filling, escapes, and one test an error."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import TemplateError
from foreword.text.template import InputField, MaskSlot, SoftSlot, TargetField, Template, decode_escapes, slot


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def test_parts():
    template = Template.parse("{soft:2}{{x}} {text}, {文本}{soft:3}:{mask}!")
    assert template.parts == (
        SoftSlot(2),
        "{x} ",
        InputField("text"),
        ", ",
        InputField("文本"),
        SoftSlot(3),
        ":",
        MaskSlot(),
        "!",
    )
    assert template.fields == ("text", "文本")
    assert template.num_soft_tokens == 5
    assert template.has_mask
    assert template.target is None
    assert template.before_answer == ":"


def test_fields_are_unique_and_without_the_target():
    template = Template.parse("{b}{a}{b} -> {target:target}")
    assert template.fields == ("b", "a")
    assert template.target == "target"
    assert not template.has_mask
    assert template.parts[-1] == TargetField("target")


@pytest.mark.parametrize("source", ["{text}{mask}", "{soft:1}{mask}", "{mask} after", "text only"])
def test_nothing_literal_before_the_answer(source: str):
    assert Template.parse(source).before_answer == ""


def test_default():
    filled = Template.default("sentence").fill({"sentence": "fine"})
    assert filled.text == "fine\nLabel:"
    assert (filled.target, filled.after) == (None, ())


def test_fill_puts_soft_tokens_between_joined_texts():
    filled = Template.parse("a{x}{soft:2}{x}{y}b{target:z}c{y}").fill({"x": "1", "y": 2, "z": True})
    assert filled.prompt == ("a1", SoftSlot(2), "12b")
    assert filled.target == "True"
    assert filled.after == ("c2",)


def test_values_are_not_templates():
    assert Template.parse("{text}").fill({"text": "{mask} {{"}).text == "{mask} {{"


def test_serving_knows_only_the_inputs():
    filled = Template.parse("{q}\n{target:a}").fill({"q": "why?"}, answer=False)
    assert (filled.text, filled.target) == ("why?\n", None)


def test_without_an_answer_everything_is_prompt():
    assert Template.parse("{a}, {b}").fill({"a": "x", "b": 1.5}).text == "x, 1.5"


@given(st.text(min_size=1), st.text())
def test_any_text_survives_escaping(text: str, value: str):
    template = Template.parse(escaped(text) + "{v}" + escaped(text) + "{mask}")
    assert template.fill({"v": value}).text == text + value + text
    assert template.before_answer == text


@given(st.text(alphabet="{}mask:soft1 \n文"))
def test_any_source_is_parsed_or_refused_in_one_sentence(source: str):
    try:
        message = Template.parse(source) and ""
    except TemplateError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or "; " in message


@pytest.mark.parametrize(
    ("source", "place", "mend"),
    [
        ("ab {text", "column 4", "close it with '}'"),
        ("{a{b}", "column 1", "close it with '}'"),
        ("a } b", "column 3", "write '}}' for a literal brace"),
        ("x{}", "column 2", "write '{field}'"),
        ("{foo:bar}", "column 1", "'{foo:bar}' is not a slot; write '{field}'"),
        ("{two:words}", "column 1", "'{field:NAME}' for a name with a colon"),
        ("{ }", "column 1", "'{{' and '}}' for literal braces"),
        ("{mask?}", "column 1", "names a field only as '{field?:mask}'"),
        ('{"a": 1}', "column 1", "for literal braces"),
        ("{soft:x}", "column 1", "write one such as '{soft:4}'"),
        ("{soft:0}", "column 1", "from 1 to 999999"),
        ("{soft:" + "9" * 5000 + "}", "column 1", "from 1 to 999999"),
        ("{soft}", "column 1", "write one such as '{soft:4}'"),
        ("{target}", "column 1", "write it as '{target:field}'"),
        ("{mask}{target:a}", "column 7", "keep '{mask}' to classify"),
        ("{mask} {mask}", "column 8", "a second '{mask}'; keep one"),
        ("{target:a}{target:b}", "column 11", "a second '{target:...}'; keep one"),
        ("{target:x}{soft:2}", "column 11", "cannot stand behind a text that is generated; move them ahead"),
        ("one\ntwo {", "line 2 column 5", "close it with '}'"),
    ],
)
def test_parse_errors_name_the_place_and_the_mend(source: str, place: str, mend: str):
    with pytest.raises(TemplateError, match=re.escape(mend)) as caught:
        Template.parse(source)
    assert f"{place}: " in str(caught.value)


def test_empty_template():
    with pytest.raises(TemplateError, match=re.escape("is empty; write one such as '{text}\\nLabel:{mask}'")):
        Template.parse("")


def test_require_answer():
    Template.parse("{mask}").require_answer()
    Template.parse("{target:a}").require_answer()
    with pytest.raises(TemplateError, match=re.escape("add {mask} where the label goes, or {target:field}")):
        Template.parse("{text}").require_answer()


def test_missing_field_names_the_row():
    with pytest.raises(TemplateError) as caught:
        Template.default("text").fill({"sentence": "s", "label": 1}, "train.jsonl line 3")
    assert str(caught.value) == (
        "train.jsonl line 3: the row has no field 'text' (it has: label, sentence); add it to the row, or "
        "name another field in the template."
    )


def test_missing_target_matters_in_training_only():
    with pytest.raises(TemplateError, match="no field 'a'"):
        Template.parse("{target:a}").fill({})


@pytest.mark.parametrize(("value", "kind"), [({}, "an object"), (b"", "of type bytes")])
def test_values_that_are_not_text(value: object, kind: str):
    with pytest.raises(TemplateError, match=f"^line 1: field 'x' is {kind}, not text; give it a string"):
        Template.parse("{x}").fill({"x": value}, "line 1")


def test_lists_are_joined_where_it_is_asked_for():
    template = Template.parse("{join:triples}\n{target:text}")
    triples = [["Ulm", "lies on", "the Danube"], ["Ulm", "has", 3]]
    assert template.fields == ("triples",)
    filled = template.fill({"triples": triples}, answer=False)
    assert filled.text == "Ulm | lies on | the Danube; Ulm | has | 3\n"
    assert template.fill({"triples": ["one", "two"]}, answer=False).text == "one; two\n"
    assert template.without_soft_tokens().source == template.source
    for value in ("text", [], [{}], [None], [[1.0, float("nan")]]):
        with pytest.raises(TemplateError, match=r"^line 1: field 'triples' must be a list of texts, or of lists"):
            template.fill({"triples": value}, "line 1", answer=False)
    with pytest.raises(TemplateError, match=r"is a list, not text; write \{join:triples\} to join its items"):
        Template.parse("{triples}").fill({"triples": triples})


def test_soft_tokens_may_stand_behind_the_mask():
    template = Template.parse("{soft:3}{mask}{soft:2}{text}{soft:1}.")
    assert (template.num_soft_tokens, template.num_inner_soft_tokens(causal=False)) == (6, 6)
    filled = template.fill({"text": "a"})
    assert filled.prompt == (SoftSlot(3),)
    assert filled.after == (SoftSlot(2), "a", SoftSlot(1), ".")


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (float("nan"), "NaN")])
def test_a_value_that_is_missing_may_be_allowed(value: object, kind: str):
    with pytest.raises(TemplateError, match=rf"^line 1: field 'x y' is {kind}, not text; .* write {{x y\?}} if it may"):
        Template.parse("{x y}").fill({"x y": value}, "line 1")


@pytest.mark.parametrize(
    "name", ["Tweet text", "a.b", "don't", '"q"', "文本", "1", "a-b", "x, y", "mask", "soft:2", "ok?", "t:u"]
)
def test_a_field_may_have_the_name_of_any_column(name: str):
    assert Template.parse(slot(name)).parts == (InputField(name),)
    assert Template.parse(slot(name, optional=True)).parts == (InputField(name, optional=True),)
    template = Template.parse(f"{{soft:1}}a {slot(name)}{{{{}}}} {{target:{name}}}")
    assert template.without_soft_tokens().fill({name: "v"}).text == "a v{} "
    assert template.fill({name: "v"}).target == "v"
    assert Template.default(name).fields == (name,)


def test_a_field_with_braces_in_its_name_is_refused():
    with pytest.raises(TemplateError, match="give it a name without braces"):
        slot("a{b")


@pytest.mark.parametrize("row", [{}, {"more": None}, {"more": ""}, {"more": float("nan")}])
def test_an_optional_field_may_be_missing_and_takes_its_line_along(row: dict):
    row = {"q": "why?", **row}
    assert Template.parse("{q} {more?}\nA:{mask}").fill(row).text == "why? \nA:"
    assert Template.parse("{q}\n{more?}\nA:{mask}").fill(row).text == "why?\nA:"
    assert Template.parse("{q}\n{more?}\n{other?}\n{mask}").fill(row).text == "why?\n"
    assert Template.parse("{q}\n{more?}\nA:{mask}").fill({**row, "more": "now"}).text == "why?\nnow\nA:"
    assert Template.parse("{more?}\n{q}{mask}").fill(row).text == "\nwhy?"


def test_an_optional_field_is_one_of_the_fields_and_not_required():
    template = Template.parse("{q}{more?}{field?:mask}{mask}")
    assert (template.fields, template.required_fields) == (("q", "more", "mask"), ("q",))
    assert template.without_soft_tokens().source == "{q}{more?}{field?:mask}{mask}"


def test_a_column_with_a_question_mark_is_no_absent_field():
    template = Template.parse("{really?}{mask}")
    assert template.fill({"really?": "yes"}).text == "yes"
    with pytest.raises(TemplateError, match="field 'really\\?' is null"):
        template.fill({"really?": None})


def test_a_wrong_name_is_told_with_the_near_one():
    with pytest.raises(TemplateError, match="no field 'txt' \\(it has: label, text\\); did you mean 'text'"):
        Template.parse("{txt}").fill({"text": "a", "label": "b"})
    with pytest.raises(TemplateError, match="for braces that are text write"):
        Template.parse("{a + b}").fill({"text": "a"})


def test_soft_tokens_are_not_text():
    with pytest.raises(TemplateError, match=re.escape("has soft tokens ({soft:3})")) as caught:
        _ = Template.parse("a{soft:3}{mask}").fill({}).text
    assert "take {soft:N} out of the template" in str(caught.value)


def test_decode_escapes():
    assert decode_escapes(r"a\nb\tc\\n\x\u4f60\d" + "\\") == "a\nb\tc\\n\\x\\u4f60\\d\\"


@given(st.text(alphabet="ab\\\n\t你nt"))
def test_decoding_undoes_escaping(text: str):
    typed = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    assert decode_escapes(typed) == text


@given(st.text())
def test_decoding_touches_only_backslashes(text: str):
    plain = text.replace("\\", "")
    assert decode_escapes(plain) == plain


def test_templates_need_neither_torch_nor_transformers():
    code = "import sys, foreword.text.template; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
