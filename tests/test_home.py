"""Where things go that nobody gave a place."""

import re
from pathlib import Path

from foreword.home import default_run_dir


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("foreword.home.time.strftime", lambda form: "20260301-101500")
    made = []
    for _ in range(3):
        made.append(default_run_dir("reviews"))
        Path(made[-1]).mkdir(parents=True)
    assert made == [f"runs/reviews-20260301-101500{end}" for end in ("", "-2", "-3")]
    assert re.fullmatch(r"runs/other-\d{8}-\d{6}", default_run_dir("other"))
