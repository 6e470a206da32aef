"""``foreword doctor``: what is checked, an area a file, and what to mend."""

from foreword.cli.doctor.command import doctor

__all__ = ["doctor"]
