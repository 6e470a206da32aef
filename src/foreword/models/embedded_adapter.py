"""`refuse_adapter`: a PEFT adapter in place of a model, or beside its weights, is refused by name.

Transformers would put such an adapter into the layers where PEFT is installed, and leave it out where it is not: the
weights would be others than those that the fingerprint is of, and other engines would load the model without it. Here
an adapter is a task of its own, in front of a model that stays as it is.
"""

from __future__ import annotations

from pathlib import Path

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from foreword.errors import UnsupportedModel


def refuse_adapter(source: str, name: str) -> None:
    """Raise UnsupportedModel for a folder or Hub id with an ``adapter_config.json``, with the mend."""
    if find_adapter_config_file(source) is None:
        return
    if not _has_model(source):
        raise UnsupportedModel(
            f"{name} is a PEFT adapter without a model; publish it as a task for its base model with "
            f"`foreword import peft {name} --publish NAME`."
        )
    raise UnsupportedModel(
        f"{name} holds a PEFT adapter beside the weights of its model, which would be served with it or without it as "
        f"PEFT is installed or not; move {ADAPTER_CONFIG_NAME} and adapter_model.safetensors into a folder of their "
        f"own, and publish that as a task with `foreword import peft FOLDER --model {name} --publish NAME`."
    )


def _has_model(source: str) -> bool:
    if Path(source).is_dir():
        return (Path(source) / CONFIG_NAME).is_file()
    return (
        cached_file(
            source,
            CONFIG_NAME,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        is not None
    )
