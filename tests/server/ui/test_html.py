"""What the page shows of answers, as HTML."""

from __future__ import annotations

from foreword.server.ui import html


def test_a_label_has_a_bar_and_a_number_is_written_out():
    shown = html.probabilities({"topics": {"a": 0.9, "b": 0.8}, "stars": 3.72, "broken": "no <such> task"})
    assert shown.count('<li><span class="label">') == 2
    assert "90.0%" in shown
    assert '<p class="number">3.72</p>' in shown
    assert "no &lt;such&gt; task" in shown
