"""`check_gradients`: proof, before anything is learned, that the loss has a gradient for the prompt.

Some layers run without an error and pass no gradient on, such as weights that a library has packed for inference: a
run on them would end with the values that it began with.
"""

from __future__ import annotations

from collections import Counter

import torch

from foreword.errors import UnsupportedModel
from foreword.models import gradient_probe
from foreword.training.modules.losses import mean_loss
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Rows of the proof, the shortest ones.
ROWS = 2


def check_gradients(run: Run, prompt: TrainablePrompt) -> None:
    """Raise UnsupportedModel if the gradient of the encoder's values is zero throughout, or no number.

    A model that was loaded to serve alone has its own proof first. Random numbers are drawn as if nothing had been run.
    """
    if run.learns:
        gradient_probe.check_gradients(run.lm)
    parameters = [each for each in prompt.encoder.parameters() if each.requires_grad]
    if not parameters or not run.examples:
        return
    shortest = sorted(run.examples, key=lambda example: example.num_tokens)[:ROWS]
    with torch.random.fork_rng(devices=[run.lm.device] if run.lm.device.type == "cuda" else []):
        loss = mean_loss(run.loss(prompt), run.lm, prompt.front(), shortest)
        found = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else ()
    if any(bool(each.any()) for each in found if each is not None):
        return
    kinds = Counter(type(module).__name__ for module in run.lm.model.modules() if not list(module.children()))
    raise UnsupportedModel(
        f"no gradient of the loss reaches the prompt through {run.lm.name} (its layers: "
        f"{', '.join(kind for kind, _ in kinds.most_common(4))}), so nothing would be learned; load the model "
        "unquantized or in another quantization."
    )
