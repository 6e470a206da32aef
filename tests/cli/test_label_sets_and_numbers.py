"""Several labels a text, and numbers, as a user types them."""

from __future__ import annotations

from training.small_data import write_jsonl
from training.test_label_sets_and_numbers import numbers, sets

LEARN = ("--template", "{text}", "--init", "random", "--length", 4, "--max-steps", 40, "--lr", 0.05)


def test_several_labels_from_rows_to_answers(run, folder, tmp_path):
    rows, held = write_jsonl(tmp_path / "rows.jsonl", sets(48, 1)), write_jsonl(tmp_path / "held.jsonl", sets(24, 2))
    made = run("train", "--data", rows, "--eval", held, *LEARN, "--publish", "topics", "--model", folder)
    assert made.status == 0, made.err
    assert "always the labels of most rows (" in made.err
    answered = run("classify", "topics", "xab", "x", "--model", folder)
    both, none = answered.out.splitlines()
    assert both.startswith("A ")
    assert ", B " in both
    assert none == "-\tx"
    data = run("classify", "topics", "xab", "--model", folder, "--json").json["data"]
    assert data[0]["labels"] == ["A", "B"]
    measured = run("eval", "topics", "--data", held, "--model", folder, "--per-class")
    assert measured.status == 0, measured.err
    assert "micro_f1" in measured.out
    assert "confusion" not in measured.out
    assert any(line.split()[0] == "B" for line in measured.out.splitlines() if line.split())


def test_numbers_from_rows_to_answers(run, folder, tmp_path):
    rows, held = (
        write_jsonl(tmp_path / "rows.jsonl", numbers(48, 1)),
        write_jsonl(tmp_path / "held.jsonl", numbers(24, 2)),
    )
    learn = ("train", "--data", rows, "--eval", held, *LEARN, "--publish", "stars", "--model", folder)
    unsaid = run(*learn)
    assert unsaid.status != 0
    assert "say with --problem-type regression that the number is to be learned" in unsaid.err
    made = run(*learn, "--problem-type", "regression")
    assert made.status == 0, made.err
    assert "a head of one number" in made.err
    few, many = (float(line.split("\t")[0]) for line in run("classify", "stars", "xa", "xb").out.splitlines())
    assert few < 4 < many
    measured = run("eval", "stars", "--data", held, "--model", folder, "--json").json
    assert "pearson" in str(measured)
    refused = run("eval", "stars", "--data", held, "--model", folder, "--per-class")
    assert refused.status != 0
    assert "answers numbers has no classes; leave out --per-class" in refused.err


def test_train_many_and_search_take_them(run, folder, tmp_path):
    users = tmp_path / "users"
    users.mkdir()
    write_jsonl(users / "anna.jsonl", sets(20, 1))
    write_jsonl(users / "ben.jsonl", sets(20, 2))
    many = run("train-many", users, *LEARN[:-4], "--max-steps", 4, "--model", folder, "--no-publish", "--json")
    assert many.status == 0, many.err
    assert many.json["learned"] == 2
    rows = write_jsonl(tmp_path / "rows.jsonl", numbers(30, 3))
    space = tmp_path / "space.yaml"
    space.write_text(
        f"data: {rows}\ntemplate: '{{text}}'\nproblem_type: regression\ninit: random\nlength: 3\nmax_steps: 6\n"
        "trials: 2\nsearch:\n  lr: [0.01, 0.1]\n"
    )
    found = run("search", space, "--model", folder, "--json")
    assert found.status == 0, found.err
    assert "pearson" in str(found.json)
