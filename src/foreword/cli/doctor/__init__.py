"""``foreword doctor``: checks of the installation, the model, the bank and the engine, a file each."""

from foreword.cli.doctor.command import doctor

__all__ = ["doctor"]
