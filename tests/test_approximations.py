import json

import pytest
from matplotlib.image import imread

from experiments import approximations


def test_the_study_compares_every_method_and_draws_it(tmp_path, capsys):
    (found,) = approximations.main(
        ["--num-steps", "30", "--batch-size", "20", "--waypoints", "3", "--out", str(tmp_path)]
    )
    rows = {row.name: row for row in found.rows}
    assert {"DrMAD", "DrMAD2", "Implicit", "3 waypoints", "2 waypoints, undone"} <= set(rows)
    # Momentum 0.95 allows 90 steps to be undone: two waypoints are enough for 30.
    for exact in ("Checkpointed", "2 waypoints, undone"):
        error = rows[exact].relative_error
        assert error is not None
        assert error < 1e-4
    assert rows["DrMAD"].cosine != pytest.approx(1, abs=1e-4)
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert [row["name"] for row in record["rows"]] == list(rows)
    assert record["config"]["num_steps"] == [30]
    assert imread(tmp_path / "cosines.png").shape[0] > 400
    assert "8860 hyperparameters, 30 steps" in capsys.readouterr().out
