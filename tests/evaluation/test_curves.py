"""Curves: a PNG with a panel a figure, and nothing where there is nothing to draw."""

from __future__ import annotations

import math

import pytest
from matplotlib.image import imread

from foreword.errors import UsageError
from foreword.evaluation.curves import write_curves

LOSS = [{"loss": 2 / step, "grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.1, "step": step} for step in (1, 2, 3)]
HELD = [{"eval_loss": 1.0, "eval_accuracy": 0.5, "eval_score": 9.0, "eval_runtime": 2.0, "epoch": 0.1, "step": 3}]
END = [{"train_runtime": 3.0, "train_loss": 1.0, "epoch": 1.0, "step": 3}]


def test_one_panel_for_the_loss_and_one_for_every_figure(tmp_path):
    file = tmp_path / "run" / "curves.png"
    write_curves(LOSS + END, file)
    alone = imread(file)
    write_curves(LOSS + HELD + END, file)
    both = imread(file)
    # Loss and accuracy: the clock, the rate and the score that picks checkpoints have no panel.
    assert both.shape == (alone.shape[0], 2 * alone.shape[1], 4)
    assert both.std() > 0
    assert [path.name for path in file.parent.iterdir()] == ["curves.png"]


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path):
    write_curves([*LOSS, {"loss": math.nan, "step": 4}, {"loss": math.inf, "step": 5}], tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()


def test_nothing_to_draw(tmp_path):
    write_curves(END, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match=r"curves .*c\.png cannot be written: .*; check the folder\.$"):
        write_curves(LOSS, tmp_path / "run" / "c.png")
