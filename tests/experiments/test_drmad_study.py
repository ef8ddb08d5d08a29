import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import hgrad_jax as hg
from experiments import rescaled_mlp
from experiments.common import parse
from experiments.drmad_study import __main__ as drmad_study
from experiments.drmad_study import back, paths, problem, records, report, tuning
from experiments.drmad_study.config import Config

NUM_STEPS = 20
TINY = [
    *("--num-steps", str(NUM_STEPS), "--num-meta-steps", "2", "--seeds", "3"),
    *("--batch-size", "20", "--path-steps", "20", "--meta-step-size", "0.125"),
]


@pytest.fixture(scope="module")
def compiled():
    config = parse(Config, TINY, "")
    return tuning.programs(config, NUM_STEPS, problem.start(config, 3))


@pytest.fixture(scope="module")
def done(compiled, tmp_path_factory):
    """The result of the meta-steps and of the way back, and its settings."""
    words = [*TINY, "--parts", "tuning", "back", "--out", str(tmp_path_factory.mktemp("drmad"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "programs", lambda *args: compiled)
        return drmad_study.main(words), parse(Config, words, "")


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The result of the paths, and its settings."""
    words = [*TINY, "--parts", "paths", "--out", str(tmp_path_factory.mktemp("paths"))]
    return drmad_study.main(words), parse(Config, words, "")


def records_of(config, follow):
    return records.journal(config, NUM_STEPS, follow, 3).records


def without_times(lines):
    return [{name: x for name, x in line.items() if name != "seconds"} for line in lines]


def test_takes_as_many_steps_as_a_layer_has_units():
    config = parse(Config, TINY, "")
    given = problem.start(config, 3)
    args = (given.params, given.scales, given.images.train, given.images.valid)
    for num_steps in (50, 10):
        objective, run = problem.problem(config, num_steps, given.scales)
        run = dataclasses.replace(run, adjoint=hg.DrMAD())
        one = functools.partial(tuning._hypergradient, objective, run)
        assert jax.eval_shape(one, *args)["value"].shape == ()


class TestTuning:
    def test_cosines_and_norms_are_those_of_compare(self, done):
        config = done[1]
        given = problem.start(config, 3)
        lines = records_of(config, "exact")
        adjoints = problem.adjoints(config)
        found = hg.compare(
            *problem.problem(config, NUM_STEPS, given.scales),
            given.params,
            tuning.scales_before(given, lines, 1),
            *given.images[:2],
            adjoints={"stored": hg.Direct(), "DrMAD": adjoints["DrMAD"]},
            repeats=0,
        )
        stored, drmad = found.rows
        record = lines[1]
        assert record["value"] == pytest.approx(stored.value, rel=1e-5)
        assert record["valid_loss"] == pytest.approx(stored.value, rel=1e-5)
        assert record["norm"]["exact"] == pytest.approx(stored.norm, rel=1e-4)
        assert record["norm"]["DrMAD"] == pytest.approx(drmad.norm, rel=1e-4)
        assert record["cosine"]["DrMAD"] == pytest.approx(drmad.cosine, abs=1e-5)
        # A sign may be another where the hypergradient is next to nothing.
        assert record["sign_cosine"]["DrMAD"] == pytest.approx(drmad.sign_cosine, abs=0.03)
        assert 0 < record["cosine"]["DrMAD"] < 0.9999

    def test_steps_are_taken_along_the_signs_of_the_one_that_is_followed(self, done):
        config = done[1]
        first = tuning.flattened(problem.start(config, 3).scales)
        after = {
            name: np.array(records_of(config, name)[0]["scales_after"])
            for name in ("DrMAD", "exact")
        }
        for scales in after.values():
            np.testing.assert_allclose(np.abs(scales - first), 0.125, rtol=1e-5)
        share = np.mean(after["DrMAD"] != after["exact"])
        signs = records_of(config, "exact")[0]["sign_cosine"]["DrMAD"]
        assert share == pytest.approx((1 - signs) / 2)
        assert share > 0

    def test_it_is_restored_and_visits_what_the_displacement_says(self, done):
        for record in records_of(done[1], "DrMAD"):
            assert record["is_restored"] is True
            assert record["temp_bytes"]["exact"] > 0
            assert 1 <= record["reverse_steps"]["DrMAD"] <= NUM_STEPS

    def test_a_tuning_that_was_killed_goes_on_with_the_same_bits(self, done, compiled):
        config = done[1]
        whole = records_of(config, "DrMAD")
        (path,) = (Path(config.out) / "meta_steps").glob("*DrMAD*")
        text = path.read_text()
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))
        assert len(records_of(config, "DrMAD")) == 1
        lines = []
        given = problem.start(config, 3)
        tuning.tune(config, NUM_STEPS, "DrMAD", 3, lambda: compiled, given, lines.append)
        assert without_times(records_of(config, "DrMAD")) == without_times(whole)
        (line,) = lines
        assert "meta-step 1" in line

        # Nothing is left to do, so nothing is compiled.
        tuning.tune(config, NUM_STEPS, "DrMAD", 3, None, given, lines.append)
        assert len(lines) == 1

    def test_records_of_other_settings_are_refused(self, done):
        words = [*TINY, "--log-scale", "0.5", "--parts", "tuning", "--out", done[1].out]
        with pytest.raises(SystemExit, match="another tuning, which differs in log_scale"):
            drmad_study.main(words)

    def test_a_file_that_is_none_is_refused(self, tmp_path):
        (tmp_path / "x.jsonl").write_text("{}")
        with pytest.raises(ValueError, match="no record of a tuning"):
            records.Journal(tmp_path / "x.jsonl", {"seed": 0})

    def test_what_is_not_finite_is_null_and_a_gap(self, tmp_path, done):
        book = records.Journal(tmp_path / "x.jsonl", {"seed": 0})
        book.add(records_of(done[1], "exact")[0] | {"cosine": {"DrMAD": np.nan, "DrMAD2": 0.5}})
        (record,) = records.Journal(tmp_path / "x.jsonl", {"seed": 0}).records
        assert record["cosine"] == {"DrMAD": None, "DrMAD2": 0.5}
        (row,) = report.summary({(20, "exact", 0): [record]})
        assert np.isnan(row["cosine"]["DrMAD"][0])
        assert row["cosine"]["DrMAD2"] == [0.5]

    @pytest.mark.parametrize(("sharing", "count"), [("unit", 320), ("weight", 8860)])
    def test_a_scale_for_every_unit_or_weight(self, sharing, count):
        given = problem.start(Config(sharing=sharing), 0)
        scales = tuning.flattened(given.scales)
        np.testing.assert_allclose(scales, np.full(count, 0.2), rtol=1e-6)
        weights = tuning.flattened(given.params)
        assert np.std(weights) == pytest.approx(np.exp(-3), rel=0.05)


class TestBack:
    def test_the_way_back_is_that_of_the_hypergradient(self, done):
        config = done[1]
        record = back.read(config, NUM_STEPS)
        assert record["meta_step"] == 2
        assert record["exact_mismatches"] == 0
        assert record["norms"]["steps"] == list(range(NUM_STEPS))

        given = problem.start(config, 3)
        objective, run = problem.problem(config, NUM_STEPS, given.scales)
        scales = tuning.scales_before(given, records_of(config, "DrMAD"), 2)

        @jax.jit
        def through_training(scales, train, valid):
            def trained(hparams):
                end = hg.unroll(run, given.params, hparams, train).params
                return objective(end, scales, valid)

            return jax.grad(trained)(scales)

        want = tuning.flattened(through_training(scales, *given.images[:2]))
        got = back.norms_of(record).norms["hparams"][0]
        assert got == pytest.approx(np.linalg.norm(want), rel=1e-4)

    def test_curves_keep_the_ends(self):
        at = back._thinned(20_000)
        assert len(at) < 1300
        assert set(range(100)) | set(range(19_900, 20_000)) <= set(at.tolist())


class TestPaths:
    @pytest.mark.slow
    def test_second_trainings_start_where_the_first_did(self, walked):
        record = paths.read(walked[1])
        found = paths.distances_of(record)
        assert list(found) == list(paths.SECOND_RUNS)
        for each in found.values():
            assert each.distances[0] == pytest.approx(record["length"], rel=1e-4)
            assert each.steps[-1] == 20
        ends = record["final_distances"]
        assert ends["another dropout, no meta-step"] > 0
        assert ends["the same dropout"] != ends["another dropout"]

    @pytest.mark.slow
    def test_the_path_is_that_of_the_training(self, walked):
        config = walked[1]
        path = paths.projections_of(paths.read(config))
        assert path.coordinates.shape == (21, 2)
        train, valid, test = paths.load_images(config)
        assert [len(x.labels) for x in (train, valid, test)] == [1078, 360, 359]
        model = paths.ConvNet()
        init = jax.jit(lambda key: model.init(key, train.inputs[:1], train=False)["params"])
        params = init(jax.random.key(0))
        for name, value in zip(path.names, path.coordinates[0], strict=True):
            # "params['Dense_0']['kernel'][3, 4]"
            assert value == pytest.approx(eval(name, {"params": params}).item(), rel=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["paths", "distances"])
    def test_a_figure_is_an_image_with_something_on_it(self, walked, name):
        image = imread(Path(walked[1].out) / f"{name}.png")
        assert min(image.shape[:2]) >= 400
        assert image[..., :3].std() > 0.05

    def test_dropout_is_before_both_dense_layers(self):
        model, x = paths.ConvNet(dropout_rate=1.0), jnp.ones((2, 8, 8, 1))
        params = model.init(jax.random.key(0), x, train=False)["params"]
        dropped = model.apply(
            {"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)}
        )
        np.testing.assert_array_equal(dropped, 0)
        kept = jnp.asarray(model.apply({"params": params}, x, train=False))
        assert jnp.abs(kept).max() > 0


class TestProgram:
    def test_the_result_is_one_line(self, done):
        result, config = done
        (line,) = (Path(config.out) / "results.jsonl").read_text().splitlines()
        read = json.loads(line)
        assert read["config"]["seeds"] == [3]
        assert set(read) >= {"environment", "tuning", "back", "seconds"}
        means = result["tuning"][0]["cosine"]["DrMAD"]
        assert result["tuning"][0]["follow"] == "DrMAD"
        cosines = [record["cosine"]["DrMAD"] for record in records_of(config, "DrMAD")]
        assert means == [pytest.approx(np.mean(cosines))]
        table = report.table(result["tuning"])
        assert f"{means[0]:.2f}" in table
        assert "20, exact" in table

    @pytest.mark.parametrize(
        "name",
        ["norms", "cosines", "errors", "accumulated", "reversal"],
    )
    def test_a_figure_is_an_image_with_something_on_it(self, done, name):
        image = imread(Path(done[1].out) / f"{name}.png")
        assert min(image.shape[:2]) >= 400
        assert image[..., :3].std() > 0.05

    def test_the_parts_of_the_data_are_disjoint(self):
        images = rescaled_mlp.load_images("digits", None, 1)
        assert [len(part.labels) for part in images] == [1000, 250, 359]
        rows = [np.asarray(part.inputs) for part in images]
        everything = {row.tobytes() for part in rows for row in part}
        assert len(everything) == sum(len({row.tobytes() for row in part}) for part in rows)
