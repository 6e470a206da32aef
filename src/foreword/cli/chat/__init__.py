"""``foreword chat``: a conversation in the terminal, answered by the embedded engine in this process."""

from foreword.cli.chat.command import chat

__all__ = ["chat"]
