import json

import pytest
from matplotlib.image import imread

from experiments.approximations import __main__ as approximations


def study(tmp_path):
    (found,) = approximations.main(
        ["--num-steps", "30", "--batch-size", "20", "--waypoints", "3", "--out", str(tmp_path)]
    )
    return {row.name: row for row in found.rows}


@pytest.mark.slow
def test_the_study_compares_every_method(tmp_path):
    rows = study(tmp_path)
    assert {"DrMAD", "DrMAD2", "Implicit", "3 waypoints", "2 waypoints, undone"} <= set(rows)
    # Momentum 0.95 allows 90 steps to be undone: two waypoints are enough for 30.
    for exact in ("Checkpointed", "2 waypoints, undone"):
        error = rows[exact].relative_error
        assert error is not None
        assert error < 1e-4
    assert rows["DrMAD"].cosine != pytest.approx(1, abs=1e-4)


def test_the_study_records_and_draws_what_it_compares(tmp_path, capsys, monkeypatch):
    names = ("Checkpointed", "DrMAD", "Truncated, last tenth")
    every = approximations.adjoints

    def three(config, num_steps):
        return {name: every(config, num_steps)[name] for name in names}

    monkeypatch.setattr(approximations, "adjoints", three)
    rows = study(tmp_path)
    assert tuple(rows) == names
    assert rows["DrMAD"].cosine != pytest.approx(1, abs=1e-4)
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert [row["name"] for row in record["rows"]] == list(rows)
    assert record["config"]["num_steps"] == [30]
    assert imread(tmp_path / "cosines.png").shape[0] > 400
    assert "8860 hyperparameters, 30 steps" in capsys.readouterr().out
