"""Which trials successive halving drops, how trials are ranked, and what halving saves."""

from __future__ import annotations

from foreword.training.search.batching_stats import halving_stats
from foreword.training.search.trial import Trial, rank_trials, rungs, trials_to_drop


def trial_with(number: int, *scores: float, **fields) -> Trial:
    return Trial(
        number, {}, 10, 4, evaluations=[{"score": score} for score in scores], best_score=max(scores), **fields
    )


def test_trials_outside_the_best_of_all_that_reached_a_rung_are_dropped():
    assert (rungs(2, 5), rungs(3, 5), rungs(5, 5)) == ((1, 2, 4), (1, 3), (1,))
    trials = [trial_with(number, score) for number, score in enumerate((0.5, 0.9, 0.7, 0.7))]
    assert trials_to_drop(trials, trials, 1, 2) == [trials[0], trials[3]]
    late = trial_with(4, 0.8)
    assert trials_to_drop([*trials, late], [late], 1, 2) == []
    later = trial_with(5, 0.7)
    assert trials_to_drop([*trials, late, later], [later], 1, 2) == [later]
    astray = trial_with(6, 0.99, state="failed")
    assert trials_to_drop([*trials, astray], trials, 1, 2) == [trials[0], trials[3]]
    # The best so far counts, as in the end.
    worse = [trial_with(0, 0.9, 0.1), trial_with(1, 0.2, 0.8)]
    assert trials_to_drop(worse, worse, 2, 2) == [worse[1]]


def test_complete_trials_rank_before_dropped_ones():
    ranked = rank_trials(
        [
            trial_with(0, 0.9, state="dropped"),
            trial_with(1, 0.5, state="complete"),
            trial_with(2, 0.5, state="complete"),
        ]
    )
    assert [trial.number for trial in ranked] == [1, 2, 0]


def test_halving_stats_count_examples_once():
    done, out = Trial(0, {}, 10, 4, step=10, state="complete"), Trial(1, {}, 10, 8, step=4, state="dropped")
    lost = Trial(2, {}, 10, 4, step=1, state="failed")
    assert halving_stats([done, out, lost]) == {
        "dropped": 1,
        "examples_run": 40 + 32 + 4,
        "examples_not_run": 48,
        "share_not_run": 48 / 124,
    }


def test_records_keep_their_keys():
    """Run folders of earlier versions are resumed, and ``trials.jsonl`` is read by scripts."""
    trial = Trial(
        3, {"lr": 0.1}, 10, 4, step=2, evaluations=[{"score": 0.5}], state="failed", best_score=0.5, error="x"
    )
    record = trial.to_json()
    assert list(record) == [
        "number",
        "point",
        "steps",
        "batch_size",
        "step",
        "evaluations",
        "state",
        "best",
        "why",
    ]
    assert Trial.from_json(record) == trial
