"""``foreword doctor``."""

from __future__ import annotations

from foreword.cli import options


def doctor(
    model: options.ModelName = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Load a model, prove that it can carry prefixes, and print what was found.

    Example: foreword doctor --model ./my-model
    """
    lm = options.open_model(model, dtype, device, trust_remote_code)
    found = {
        "model": lm.name,
        "architecture": lm.identity.architecture,
        "kind": "encoder-decoder" if lm.decoder else "causal" if lm.causal else "encoder",
        "layers": len(lm.identity.layers),
        "context": lm.context,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "weights": lm.identity.weights,
        "difference": lm.difference,
    }
    lines = [f"{key:14}{value}" for key, value in found.items() if key != "difference"]
    proof = "carries prefixes: yes; text as a prefix gives the logits of the joined text"
    if lm.decoder:
        proof = "takes soft tokens, and no prefix: embeddings give the logits of the tokens that they are of"
    options.emit(found, "\n".join([*lines, f"{proof}, {lm.difference:.2g} apart (root mean square)"]), json)
