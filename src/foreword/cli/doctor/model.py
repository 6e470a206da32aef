"""The base model: what it is, and the proof that it carries prefixes, which every load brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cli.doctor.finding import Finding

if TYPE_CHECKING:
    from foreword.models import LanguageModel


def facts(lm: LanguageModel) -> dict[str, Any]:
    """What a load has shown; ``difference`` is the root mean square of the proof's logits."""
    return {
        "model": lm.name,
        "architecture": lm.identity.architecture,
        "kind": "encoder-decoder" if lm.is_encoder_decoder else "causal" if lm.causal else "encoder",
        "layers": len(lm.identity.layers),
        "context": lm.context,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "weights": lm.identity.weights,
        "difference": lm.probe_error,
    }


def check_model(lm: LanguageModel) -> list[Finding]:
    """A loaded model is a proved one, so this only says what was proved."""
    found = facts(lm)
    what = [f"{found['kind']} {found['architecture']}", f"{found['layers']} layers", f"context {found['context']}"]
    proof = "carries prefixes: text as a prefix gives the logits of the joined text"
    if lm.is_encoder_decoder:
        proof = "takes soft tokens, and no prefix: embeddings give the logits of the tokens that they are of"
    return [
        Finding("model", lm.name, "good", ", ".join([*what, found["dtype"], f"weights {found['weights'][:12]}"])),
        Finding("model", "proof", "good", f"{proof}, {lm.probe_error:.2g} apart (root mean square)"),
    ]
