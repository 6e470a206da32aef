"""The former name of `GenerationTimer`, for ``foreword.cli.doctor.engine`` alone."""

from __future__ import annotations

from foreword.cli.generation_stats import GenerationTimer


class Meter(GenerationTimer):
    figures = GenerationTimer.stats
