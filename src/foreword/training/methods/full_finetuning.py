"""`FullFinetuning`: a context in which all weights of a model are trainable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from foreword.core import ModelIdentity
from foreword.core.whole_folder import whole_folder
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.models.fingerprint import stored_tensors, weights_fingerprint


class FullFinetuning:
    """A context in which a model's parameters are trainable; after it the model is as it was, bit for bit.

    Trained are copies in float32 or wider: steps of bfloat16 would be rounded away. Other users of the model see it
    change meanwhile.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._parameters = list(lm.model.parameters())
        self._originals = [parameter.data for parameter in self._parameters]

    def __enter__(self) -> FullFinetuning:
        for parameter, original in zip(self._parameters, self._originals, strict=True):
            parameter.data = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
            parameter.requires_grad_(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, original in zip(self._parameters, self._originals, strict=True):
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data = original

    def save(self, folder: Path) -> ModelIdentity:
        """Round the weights to the model's own dtype and write a model folder; returns its identity.

        Raises TrainingError if the folder cannot be written.
        """
        for parameter, original in zip(self._parameters, self._originals, strict=True):
            parameter.data = parameter.data.to(original.dtype)
        try:
            with whole_folder(folder) as partial:
                self._lm.model.save_pretrained(partial)
                self._lm.tokenizer.save_pretrained(partial)
        except OSError as error:
            raise TrainingError(f"the model folder {folder} cannot be written: {error.strerror}.") from error
        return replace(self._lm.identity, weights=weights_fingerprint(stored_tensors(folder)), lineage=())
