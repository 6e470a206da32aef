"""`TaskDatasets`: the training data of every task of a multi-task run, by its name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from foreword.errors import DataError
from foreword.models import LanguageModel
from foreword.training.data.training_data import TrainingData
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.task_source import TaskSource


@dataclass(frozen=True)
class TaskDatasets:
    """Reads the rows of a task whenever they are needed; none are kept in memory.

    Attributes:
        lm: the base model.
        config: the settings of every task.
        train_source: the rows of every task.
        eval_source: its evaluation rows; without, a tenth of its rows is held out.
    """

    lm: LanguageModel
    config: MultiTaskConfig
    train_source: TaskSource
    eval_source: TaskSource | None

    def training_data(self, name: str) -> TrainingData:
        """The examples of a task. Raises DataError for too few."""
        rows = self.train_source.rows(name)
        if len(rows) < self.config.min_rows:
            raise DataError(f"it has {len(rows)} rows, fewer than {self.config.min_rows} (--min-rows)")
        held = self.eval_source.rows(name) if self.eval_source is not None else []
        data = TrainingData.from_rows(self.config.task_recipe(name), rows, held, vocabulary=self.lm.has_lm_head)
        return replace(data, digest=self.train_source.digest(name))

    def digest(self, name: str) -> str:
        """SHA-256 of a task's rows and own settings: it is learned again when this changes."""
        held = self.eval_source.digest(name) if self.eval_source is not None else ""
        settings = json.dumps(dict(self.config.tasks.get(name, {})), sort_keys=True)
        return hashlib.sha256("\n".join((self.train_source.digest(name), held, settings)).encode()).hexdigest()
