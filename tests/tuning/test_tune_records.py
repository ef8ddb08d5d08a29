"""What a tuning writes, and goes on from."""

import functools
import json
import os
import shutil
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import hgrad_jax as hg
from hgrad_jax.tools import files
from tests.shared.tune_child import HPARAMS, linear_data, tune
from tests.shared.tunings import assert_close, read_lines, same_bits


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder of three meta-steps, and their Tuned."""
    folder = tmp_path_factory.mktemp("records") / "run"
    return folder, tune(records=hg.Records(folder, is_whole=True), num_runs=2)


class TestRecords:
    def test_a_line_a_meta_step(self, recorded):
        folder, out = recorded
        lines = read_lines(folder)
        assert [line["meta_step"] for line in lines] == [0, 1, 2]
        assert [line["value"] for line in lines] == out.history.value.tolist()
        assert [line["seconds"] for line in lines] == out.history.seconds.tolist()
        for line in lines:
            log_rate = np.float32(line["hparams"]["log_rate"])
            summary = line["summaries"]["log_rate"]
            assert summary["mean"] == pytest.approx(log_rate.mean())
            assert summary["std"] == pytest.approx(log_rate.std(), rel=1e-4)
            assert (summary["min"], summary["max"]) == (log_rate.min(), log_rate.max())
            norm = np.linalg.norm(line["hypergradient"]["log_rate"])
            assert summary["norm"] == pytest.approx(norm)
            assert line["bytes"] > 0
            assert line["problem"] is line["is_restored"] is None
        assert_close(np.array(lines[0]["hparams"]["log_rate"]), HPARAMS["log_rate"])

    def test_figures_are_images_with_something_on_them(self, recorded):
        for name in ("value", "hypergradient", "hparams"):
            image = imread(recorded[0] / f"{name}.png")
            assert min(image.shape[:2]) >= 250
            assert image[..., :3].std() > 0.05

    def test_a_run_that_is_done_is_read(self, recorded):
        again = tune(records=hg.Records(recorded[0], is_whole=True), num_runs=2)
        assert again.resumed_at == 3
        assert same_bits(again, recorded[1])

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"hparams": HPARAMS | {"log_l2": jnp.float32(-3.5)}}, "hparams"),
            ({"train": linear_data(12, 9)}, "data"),
            ({"valid": linear_data(6, 9)}, "outer_data"),
            ({"key": jax.random.key(1)}, "key"),
            ({"fresh_seeds": False}, "fresh_seeds"),
            ({"optimizer": hg.sign_descent(0.2)}, "program"),
            ({"num_steps": 5}, "program"),
            ({"on_bad": hg.Skip()}, "on_bad"),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_a_folder_of_another_configuration_is_refused(self, change, name, recorded):
        before = (recorded[0] / "meta_steps.jsonl").read_bytes()
        with pytest.raises(hg.CheckpointError, match=rf"another run, which differs in [^;]*{name}"):
            tune(records=hg.Records(recorded[0], is_whole=True), **{"num_runs": 2} | change)
        assert (recorded[0] / "meta_steps.jsonl").read_bytes() == before

    def test_fewer_meta_steps_than_are_done(self, recorded):
        with pytest.raises(ValueError, match=r"num_meta_steps is 2, but the tuning .* done 3"):
            tune(records=hg.Records(recorded[0]), num_runs=2, num_meta_steps=2)

    def test_records_of_another_tuning_before_its_first_checkpoint(self, recorded, tmp_path):
        """All that a kill may leave of it; they are not written over."""
        path = tmp_path / "meta_steps.jsonl"
        line = (recorded[0] / "meta_steps.jsonl").read_text().splitlines()[0]
        path.write_text(line.replace('"tuning": "', '"tuning": "0') + "\n")
        before = path.read_bytes()
        with pytest.raises(hg.CheckpointError, match="is the record of another tuning; name"):
            tune(records=hg.Records(tmp_path), num_runs=2)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("every", [1, 5])
    def test_checkpoints_may_be_more_or_fewer_than_before_a_kill(self, every, recorded, tmp_path):
        """As if killed before the first checkpoint, with three lines."""
        settings, given = {"num_runs": 2}, {"figures_every": None, "is_whole": True}
        tune(records=hg.Records(tmp_path, every=3, **given), **settings)
        assert len(read_lines(tmp_path)) == 3
        shutil.rmtree(tmp_path / "checkpoints")
        out = tune(records=hg.Records(tmp_path, every=every, **given), **settings)
        assert out.resumed_at is None
        assert same_bits(out, recorded[1])
        assert [line["meta_step"] for line in read_lines(tmp_path)] == [0, 1, 2]

    @pytest.mark.parametrize("damage", ["shortened", "strange", "no checkpoints"])
    def test_records_that_are_not_the_checkpoint_s(self, damage, recorded, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(recorded[0], folder)
        path = folder / "meta_steps.jsonl"
        if damage == "no checkpoints":
            shutil.rmtree(folder / "checkpoints")
        else:
            line, *rest = path.read_text().splitlines(keepends=True)
            path.write_text("".join([line[:9] + "\n", *rest] if damage == "strange" else rest))
        before = path.read_bytes()
        with pytest.raises(hg.CheckpointError, match="is not the record of a tuning of which"):
            tune(records=hg.Records(folder), num_runs=2)
        assert path.read_bytes() == before

    def test_a_kill_before_any_of_the_writes(self, recorded, tmp_path, monkeypatch):
        """As an exception that nothing catches, when a file is written but not yet in its place.

        The calls, each of which goes on where the one before was killed: in the first line, in the
        second, in a figure halfway, in a figure at the end.
        """

        class Killed(BaseException):
            pass

        writes = []

        def counted(call, replace, *args):
            if args[1].parent != folder:
                return replace(*args)
            writes.append(args)
            if len(writes) == call:
                raise Killed
            return replace(*args)

        def timeless(folder):
            return [json.dumps(line | {"seconds": 0}) for line in read_lines(folder)]

        folder, names = tmp_path / "run", []
        settings = {"num_runs": 2, "records": hg.Records(folder, figures_every=2, is_whole=True)}
        for call in (1, 2, 3, 4):
            writes.clear()
            with monkeypatch.context() as patch:
                patch.setattr(files.os, "replace", functools.partial(counted, call, os.replace))
                with pytest.raises(Killed):
                    tune(**settings)
            names.append(writes[-1][1].name)
            left = timeless(folder)
            assert left == timeless(recorded[0])[: len(left)]
            for figure in folder.glob("[!.]*.png"):
                imread(figure)
        assert names == [*["meta_steps.jsonl"] * 2, "hypergradient.png", "hparams.png"]
        assert same_bits(tune(**settings), recorded[1])
        assert timeless(folder) == timeless(recorded[0])
        assert {path.name for path in folder.iterdir()} == {
            *("checkpoints", "hparams.png", "hypergradient.png", "meta_steps.jsonl", "value.png")
        }

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"every": 0}, "every is 0; it must be a positive int"),
            ({"figures_every": 0}, "figures_every is 0; it must be a positive int, or None"),
            ({"folder": __file__}, "which is a file; name a folder"),
        ],
        ids=lambda x: x if isinstance(x, str) else next(iter(x)),
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            hg.Records(**{"folder": "records"} | settings)

    def test_a_name_that_the_system_does_not_take(self):
        with pytest.raises(hg.CheckpointError, match=r"cannot be used: .*name too long"):
            hg.Records("a" * 300)

    def test_no_folder(self):
        with pytest.raises(TypeError, match="folder is None; name a folder by a str or"):
            hg.Records(cast(Any, None))
