"""Findings about the base model; loading it has proved that it can take prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cli.doctor.finding import Finding
from foreword.errors import UnsupportedModel

if TYPE_CHECKING:
    from foreword.models import LanguageModel

# Tokens that are named, at most.
MAX_NAMED = 8


def facts(lm: LanguageModel) -> dict[str, Any]:
    """Properties of a loaded model; ``difference`` is the root mean square between the logits of its probe."""
    return {
        "model": lm.name,
        "architecture": lm.identity.architecture,
        "kind": "encoder-decoder" if lm.is_encoder_decoder else "causal" if lm.causal else "encoder",
        "layers": len(lm.identity.layers),
        "context": lm.context,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "quantization": lm.quantization,
        "weights": lm.identity.weights,
        "carried": lm.carried,
        "limits": list(lm.limits),
        **({"difference": lm.proof.difference, "tolerance": lm.proof.tolerance} if lm.proof is not None else {}),
    }


def check_model(lm: LanguageModel) -> list[Finding]:
    """The findings of a model that has been loaded, and so has been proved."""
    found = facts(lm)
    what = [f"{found['kind']} {found['architecture']}", f"{found['layers']} layers", f"context {found['context']}"]
    form = [found["dtype"], *([found["quantization"]] if found["quantization"] is not None else [])]
    proof = "carries prefixes: text as a prefix gives the logits of the joined text"
    if lm.is_encoder_decoder:
        proof = "takes soft tokens: embeddings give the logits of the tokens that they are of"
    findings = [
        Finding("model", lm.name, "good", ", ".join([*what, *form, f"weights {found['weights'][:12]}"])),
        Finding("model", "proof", "good", f"{proof}, {lm.proof}" if lm.proof is not None else proof),
    ]
    findings.append(Finding("model", "prefixes", "good", "; ".join([f"carried {lm.carries}", *lm.limits])))
    findings.append(_check_gradients(lm))
    from foreword.core.token_rows import tokens_without_row

    if lost := tokens_without_row(lm.tokenizer, lm.identity.vocab_size):
        named = ", ".join(map(repr, lost[:MAX_NAMED])) + (", ..." if len(lost) > MAX_NAMED else "")
        has = f"{named} have no row in the embedding of {lm.identity.vocab_size}, so no text may hold them"
        mend = "resize the model's embeddings (model.resize_token_embeddings), or take the tokens out"
        findings.append(Finding("model", "tokens", "note", has, mend))
    return findings


def _check_gradients(lm: LanguageModel) -> Finding:
    from foreword.models.gradient_probe import check_gradients

    try:
        check_gradients(lm)
    except UnsupportedModel as error:
        mend = "serve it as it is, and learn on its weights unquantized or in another quantization"
        return Finding("model", "gradients", "note", str(error).partition(";")[0], mend)
    return Finding("model", "gradients", "good", "reach all that can be learned in front of it")
