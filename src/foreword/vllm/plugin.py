"""The package's entry points for vLLM, declared in ``pyproject.toml``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreword.vllm.endpoint import TaskEndpoint


def register() -> None:
    """``vllm.general_plugins``: called in each of vLLM's processes, whether or not it serves prefixes."""
    from foreword.errors import UsageError

    try:
        from foreword.vllm.compat import register_connector

        register_connector()
    except UsageError as error:  # an unsupported vLLM goes on as if Foreword were not installed
        logging.getLogger("vllm.foreword").warning("%s", error)


def endpoint() -> TaskEndpoint:
    """``vllm.endpoint_plugins``: called in the process that serves HTTP, if ``VLLM_PLUGINS`` names it."""
    from foreword.vllm.endpoint import TaskEndpoint

    return TaskEndpoint()
