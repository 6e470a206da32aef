"""The data sets, and who is measured on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.quality.dataset import PARTS, DataSet, Split, Values, parts, values

_PROMPTS = ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2")
_FEW = ("majority", "manual", "p-tuning-v2", "p-tuning", "pet")

# Relations of LAMA with the template of LAMA, or of ParaRel where LAMA's does not end with the answer: a causal model
# never sees what is behind it.
_RELATIONS = {
    "P17": "{subject} is located in",
    "P19": "{subject} was born in",
    "P27": "{subject} is a citizen of",
    "P30": "{subject} is located in",
    "P36": "The capital of {subject} is",
    "P37": "The official language of {subject} is",
    "P103": "The native language of {subject} is",
    "P140": "{subject} is follower of",
    "P176": "{subject} is produced by",
    "P364": "The original language of {subject} is",
    "P413": "{subject} plays in the position of",
    "P495": "{subject} was created in",
}


def _clinc(data: Path) -> Split:
    """Intents in words: ``report_fraud`` becomes ``report fraud``."""
    return _each(parts("clinc150")(data), lambda row: {"text": row["text"], "label": row["intent"].replace("_", " ")})


def _e2e(data: Path) -> Split:
    """References continue the text, so each begins with a space."""
    return _each(
        parts("e2e_nlg")(data), lambda row: {"mr": row["mr"], "references": [f" {text}" for text in row["references"]]}
    )


def _copa(data: Path) -> Split:
    """The question as the word that joins premise and choice."""
    joined = {"cause": "because", "effect": "so"}
    return _each(parts("fewglue", "copa.")(data), lambda row: {**row, "joined": joined[row["question"]]})


def _lama(relation: str) -> Callable[[Path], Split]:
    def read(data: Path) -> Split:
        every = {part: values(data / "lama_trex" / f"{part}.jsonl") for part in PARTS}
        chosen = {part: [row for row in rows if row["relation"] == relation] for part, rows in every.items()}
        return _each(chosen, lambda row: {"subject": row["subject"], "label": row["answer"]})

    return read


def _each(rows: Split, change: Callable[[Values], Values]) -> Split:
    return {part: [change(row) for row in found] for part, found in rows.items()}


def _relation(name: str, template: str) -> DataSet:
    before, after = template.split("{subject}")
    # Soft tokens around the subject, as in P-tuning's own LAMA experiments; the relation's words stay.
    soft = f"{{soft:3}}{before}{{subject}}{{soft:3}}{after}{{mask}}"
    return DataSet(
        f"lama-{name.lower()}",
        _lama(name),
        metric="accuracy",
        template=f"{template}{{mask}}",
        approaches=("majority", "manual", "p-tuning", "lora"),
        soft_template=soft,
        steps=100,
    )


def _few(
    name: str, template: str, pattern: str, words: Mapping[str, str], read: Callable[[Path], Split] | None = None
) -> DataSet:
    return DataSet(
        f"fewglue-{name}",
        read or parts("fewglue", f"{name}."),
        metric="accuracy",
        template=template,
        approaches=_FEW,
        verbalizer=words,
        patterns=(pattern,),
        steps=60,
    )


DATASETS: Mapping[str, DataSet] = {
    dataset.name: dataset
    for dataset in (
        DataSet(
            "sst2",
            parts("sst2"),
            metric="accuracy",
            template="Review: {text}\nSentiment:{mask}",
            approaches=(
                *("majority", "manual", *_PROMPTS, "autoprompt", "pet", "lora", "lora-hybrid", "full", "peft-lora"),
                *(f"peft-{name}" for name in _PROMPTS),
            ),
            verbalizer={"positive": " great", "negative": " bad"},
            patterns=("{text}\nAll in all, it was{mask}", "{text}\nThe film is{mask}"),
        ),
        DataSet(
            "clinc150",
            _clinc,
            metric="accuracy",
            template="Query: {text}\nIntent:{mask}",
            approaches=("majority", "manual", "p-tuning-v2", "prefix-tuning", "prompt-tuning", "lora", "full"),
            head_template="Query: {text}\nIntent:",
        ),
        DataSet(
            "e2e",
            _e2e,
            metric="bleu",
            template="Data: {mr}\nText:{target:references}",
            approaches=("manual", "prefix-tuning", "p-tuning-v2", "prompt-tuning", "lora", "full"),
        ),
        DataSet(
            "snips",
            parts("snips"),
            metric="span_f1",
            template="{tokens}",
            approaches=("majority", "p-tuning-v2", "prefix-tuning", "lora", "full"),
            label_field="tags",
            head_template="{tokens}",
            encoder=True,
        ),
        *(_relation(name, template) for name, template in _RELATIONS.items()),
        _few(
            "rte",
            "{premise}\nQuestion: {hypothesis} True or false?\nAnswer:{mask}",
            "{premise}\nSo it is said that: {hypothesis}\nThat is{mask}",
            {"entailment": " true", "not_entailment": " false"},
        ),
        _few(
            "cb",
            "{premise}\nQuestion: {hypothesis} Yes, no or maybe?\nAnswer:{mask}",
            "{premise}\nDoes this mean that {hypothesis}? I log{mask}",
            {"entailment": " yes", "contradiction": " no", "neutral": " maybe"},
        ),
        _few(
            "boolq",
            "{passage}\nQuestion: {question}?\nAnswer:{mask}",
            "{passage}\nBased on this, {question}? I log{mask}",
            {"true": " yes", "false": " no"},
        ),
        _few(
            "wic",
            "{sentence1}\n{sentence2}\nDoes {word} mean the same in both sentences?\nAnswer:{mask}",
            "{word}: {sentence1}\n{word}: {sentence2}\nSame meaning? I log{mask}",
            {"true": " yes", "false": " no"},
        ),
        _few(
            "copa",
            "{premise} {joined}\nA: {choice1}\nB: {choice2}\nAnswer:{mask}",
            "{premise} {joined}?\nA: {choice1}\nB: {choice2}\nI choose{mask}",
            {"choice1": " A", "choice2": " B"},
            _copa,
        ),
    )
}
LAMA = tuple(f"lama-{name.lower()}" for name in _RELATIONS)
"""The relations of LAMA among them."""
