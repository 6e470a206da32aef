"""Sample data of our own, for first commands, tests and the demo: `sample` reads them by name."""

from __future__ import annotations

from importlib.resources import files

from foreword.errors import UsageError

LANGUAGES = ("en", "zh")

SAMPLES = {
    "reviews": "reviews.{language}.jsonl",
    "policy": "policy.{language}.txt",
    "users": "users.jsonl",
    "conversations": "conversations.jsonl",
}
"""File of every sample; those without a language are in English, or in both."""


def sample(name: str, language: str = "en") -> str:
    """The text of a sample file.

    Args:
        name: ``reviews`` (JSON lines of ``text`` and ``label``), ``policy`` (a support policy of 1,100 tokens),
            ``users`` (JSON lines of ``user``, ``headline`` and ``opened``) or ``conversations`` (JSON lines of
            ``messages``, some with ``tools``).
        language: ``en`` or ``zh``.

    Raises UsageError for another name or language, and for a language that the sample does not have.
    """
    if name not in SAMPLES:
        raise UsageError(f"there is no sample {name!r}; use one of {', '.join(SAMPLES)}.")
    if language not in LANGUAGES:
        raise UsageError(f"samples are in {' and '.join(LANGUAGES)}, not {language!r}; choose one of them.")
    file = SAMPLES[name]
    if "{language}" not in file and language != "en":
        raise UsageError(f"the sample {name} is one file, whatever the language; leave --language out.")
    return files("foreword.samples").joinpath(file.format(language=language)).read_text(encoding="utf-8")
