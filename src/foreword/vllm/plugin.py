"""What vLLM finds through the package's entry points."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreword.vllm.endpoint import TaskEndpoint


def register() -> None:
    """``vllm.general_plugins``: in each of vLLM's processes, whether or not it serves prefixes."""
    from foreword.errors import UsageError

    try:
        from foreword.vllm.compat import register as register_connector
    except UsageError as error:  # somebody else's vLLM goes on as if Foreword were not installed
        logging.getLogger("vllm.foreword").warning("%s", error)
        return
    register_connector()


def endpoint() -> TaskEndpoint:
    """``vllm.endpoint_plugins``: in the process that answers HTTP, if ``VLLM_PLUGINS`` names it."""
    from foreword.vllm.endpoint import TaskEndpoint

    return TaskEndpoint()
