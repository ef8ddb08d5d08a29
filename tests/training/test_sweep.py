import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba

import hgrad_jax as hg
from experiments.bench_sweep import __main__ as bench_sweep
from hgrad_jax.data import load, minibatches
from hgrad_jax.models import MLP, cross_entropy
from hgrad_jax.training.sweep_chunks import chunk_size

KEYS = jax.random.split(jax.random.key(0), 3)
MODEL = MLP((6, 10), activation=jnp.tanh)
DIGITS = jax.tree.map(lambda x: jnp.asarray(x[:40]), load("digits").train)
SETTINGS = hg.grid({"learning_rate": [0.05, 0.2], "momentum": [0.0, 0.9]})
NUM_STEPS = 12


def loss(params, hparams, batch, key):
    logits = MODEL.apply({"params": params}, batch.inputs, train=True)
    return cross_entropy(jnp.asarray(logits), batch.labels)


def train(hparams, key, data):
    """Losses of one run; what all tests sweep, so that it compiles once a shape."""
    params = MODEL.init(key, data.inputs[:1], train=False)["params"]
    out = hg.unroll(
        hg.Run(
            hg.heavy_ball(loss),
            num_steps=NUM_STEPS,
            batch_fn=minibatches(10),
            record=lambda state, data: loss(state.params, None, data, None),
        ),
        params,
        hparams,
        data,
        key=key,
    )
    return {"loss": loss(out.params, None, data, None), "path": {"loss": out.trace}}


@pytest.fixture(scope="module")
def found():
    return hg.sweep(train, SETTINGS, DIGITS, keys=KEYS)


@pytest.fixture(scope="module")
def one_by_one():
    jitted = jax.jit(train)
    hparams = [jax.tree.map(jnp.float32, s) for s in SETTINGS]
    runs = [jitted(h, key, DIGITS) for h in hparams for key in KEYS]
    return jax.tree.map(lambda *x: np.stack(x).reshape(4, 3, *x[0].shape), *runs)


def close(got, want, rtol=1e-4):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, want)


class TestGrid:
    def test_the_last_name_runs_fastest(self):
        settings = hg.grid({"a": [1.0, 2.0], "b": np.array([3.0, 4.0, 5.0])})
        assert [tuple(s.values()) for s in settings] == [
            (a, b) for a in (1.0, 2.0) for b in (3.0, 4.0, 5.0)
        ]

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ({}, ValueError, "values is empty"),
            ({"a": [1.0], "b": []}, ValueError, r"values\['b'\] is empty"),
            ([0.1], TypeError, "a grid is made from a mapping"),
            ({"a": 0.1}, TypeError, r"values\['a'\] is 0.1; give a list"),
            ({"a": jnp.float32(1)}, TypeError, "give a list"),
            ({"a": "relu"}, TypeError, "give a list"),
        ],
    )
    def test_bad_input(self, values, error, message):
        with pytest.raises(error, match=message):
            hg.grid(values)


class TestResults:
    def test_they_equal_the_runs_one_by_one(self, found, one_by_one):
        assert found.results["path"]["loss"].shape == (4, 3, NUM_STEPS)
        assert isinstance(found.results["loss"], np.ndarray)
        close(found.results, one_by_one)
        assert len(np.unique(found.results["loss"])) == 12

    def test_without_keys_each_setting_runs_once(self):
        def run(hparams, key, data):
            assert key is None
            return hparams["rate"] * data

        settings = [{"rate": 1}, {"rate": 0.5}]  # an integer among floats becomes one
        got = hg.sweep(run, settings, np.arange(3.0, dtype=np.float32))
        np.testing.assert_array_equal(got.results, [[[0, 1, 2]], [[0, 0.5, 1]]])

    def test_settings_may_be_any_trees_and_keys_raw(self):
        def run(hparams, key, data):
            noise = jax.random.normal(key, ())
            return jnp.sum(hparams["layers"][0]) + hparams["layers"][1] + 0 * noise

        settings = [{"layers": (np.arange(3.0) + i, 10.0 * i)} for i in range(5)]
        got = hg.sweep(run, settings, keys=jax.random.key_data(KEYS))
        np.testing.assert_allclose(got.results, np.tile(3 + 13.0 * np.arange(5)[:, None], 3))
        assert got.values("layers.1") == [0, 10, 20, 30, 40]

    def test_the_runs_are_traced_once_for_all_settings_keys_and_calls(self):
        traces = []

        def run(hparams, key, data):
            traces.append(1)
            return hparams["a"] * jax.random.normal(key, ())

        for factor in (1.0, 2.0):
            settings = hg.grid({"a": [factor, 3.0], "b": [0.0, 1.0]})
            hg.sweep(run, settings, keys=jax.random.split(jax.random.key(int(factor)), 3))
        assert len(traces) == 1

    def test_a_failed_run_is_nan_in_its_row_only(self):
        def run(hparams, key, data):
            return {"x": jnp.where(hparams * data > 3.5, jnp.nan, hparams), "n": jnp.int32(1)}

        fine, bad = hg.sweep(run, [1.0, 2.0], 1.0), hg.sweep(run, [1.0, 4.0], 1.0)
        np.testing.assert_array_equal(bad.results["x"], [[1.0], [np.nan]])
        np.testing.assert_array_equal(bad.results["n"], fine.results["n"])
        np.testing.assert_array_equal(bad.is_failed, [[False], [True]])

    def test_a_training_that_breaks_leaves_the_others_alone(self, found):
        """Half the settings are the sweep's before, half have an infinite rate."""
        wild = [s | {"learning_rate": np.inf} for s in SETTINGS[2:]]
        mixed = hg.sweep(train, [*SETTINGS[:2], *wild], DIGITS, keys=KEYS)
        close(mixed.select({"learning_rate": 0.05}).results, _head(found.results, 2))
        np.testing.assert_array_equal(mixed.is_failed.all(axis=1), [False, False, True, True])


def _head(results, count):
    return jax.tree.map(lambda x: x[:count], results)


def sort(hparams, key, data):
    """A run that takes memory and compiles fast."""
    return jnp.sort(hparams["scale"] * jax.random.normal(key, (1000,)))[::250]


class TestMemory:
    SETTINGS = hg.grid({"scale": [1.0, 2.0, 3.0, 4.0]})

    def test_chunks_fit_the_budget_and_change_nothing(self):
        """A budget for 5 of the 12 runs: 3 calls of 4. For 8: 2 of 6. For 11: the same."""
        whole = hg.sweep(sort, self.SETTINGS, keys=KEYS)
        assert whole.chunk_size == 12
        for room, size in ((5, 4), (8, 6), (11, 6), (12, 12)):
            found = hg.sweep(sort, self.SETTINGS, keys=KEYS, memory=_bytes(room))
            assert found.chunk_size == size
            assert _bytes(size) <= _bytes(room)
            np.testing.assert_array_equal(found.results, whole.results)
        # Seven runs in two calls of four: the last one is filled up.
        odd = hg.sweep(sort, self.SETTINGS[:1], keys=jax.random.split(KEYS[0], 7), memory=_bytes(6))
        assert odd.chunk_size == 4
        assert odd.results.shape == (1, 7, 4)
        assert len(np.unique(odd.results[:, :, 0])) == 7

    def test_a_budget_for_less_than_one_run_raises(self):
        with pytest.raises(ValueError, match=r"memory is 100 bytes, but one run takes [\d.]+ kB"):
            hg.sweep(sort, self.SETTINGS, keys=KEYS, memory=100)

    @given(
        num_runs=st.integers(1, 200),
        num_devices=st.integers(1, 9),
        constant=st.integers(0, 500),
        memory=st.integers(1, 3000),
        curved=st.booleans(),
    )
    def test_the_largest_of_equal_parts(self, num_runs, num_devices, constant, memory, curved):
        def bytes_of(size):
            assert size % num_devices == 0
            assert 1 <= size < num_runs + num_devices
            each = size // num_devices
            return constant + (each**2 if curved else 10 * each)

        settings = {"num_runs": num_runs, "num_devices": num_devices, "memory": memory}
        if bytes_of(num_devices) > memory:
            with pytest.raises(ValueError, match="one run takes"):
                chunk_size(bytes_of, **settings)
            return
        size = chunk_size(bytes_of, **settings)
        assert bytes_of(size) <= memory
        if not curved:  # where bytes grow in proportion, fewer calls would not fit
            most = -(-num_runs // num_devices)
            calls = -(-most // (size // num_devices))
            fewer = -(-most // max(calls - 1, 1)) * num_devices
            assert calls == 1 or bytes_of(fewer) > memory


@functools.cache
def _bytes(size):
    keys, hparams = jax.random.split(KEYS[0], size), {"scale": jnp.ones(size)}
    vmapped = jax.jit(jax.vmap(sort, (0, 0, None)))
    analysis: Any = vmapped.lower(hparams, keys, None).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


HYPERGRADIENTS = """
import jax, jax.numpy as jnp, numpy as np, hgrad_jax as hg

x = jax.random.normal(jax.random.key(3), (20, 4))
DATA = (x, jnp.tanh(x) @ jnp.arange(4.0))

def loss(params, hparams, batch, key):
    return jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2)

def run(hparams, key, data, adjoint=hg.Reversible()):
    one, two = jax.random.split(key)
    params = {"a": jax.random.normal(one, (4, 4)), "b": jax.random.normal(two, (4,))}
    found = hg.value_and_hypergradient(
        lambda params, hparams, data: loss(params, hparams, data, None),
        hg.Run(hg.momentum(loss), num_steps=15, adjoint=adjoint),
        params, hparams, data, data, key=key)
    return {"value": found.value, "bars": found.hparams, "mismatches": found.info.mismatches}

SETTINGS = hg.grid({"learning_rate": [0.01, 0.03, 0.1], "momentum": [0.6, 0.9]})
KEYS = jax.random.split(jax.random.key(0), 3)
"""

CHILD = """
import sys
assert len(jax.devices()) == 8
whole = hg.sweep(run, SETTINGS, DATA, keys=KEYS)
assert (whole.num_devices, whole.chunk_size) == (8, 24), whole[2:]
few = hg.sweep(run, SETTINGS[:1], DATA, keys=KEYS)
assert (few.num_devices, few.chunk_size) == (3, 3), few[2:]
one = hg.sweep(run, SETTINGS, DATA, keys=KEYS, devices=jax.devices()[:1])
assert (one.num_devices, one.chunk_size) == (1, 18), one[2:]
np.savez(sys.argv[1], *jax.tree.leaves((whole.results, one.results, few.results)))

# A budget for two runs, on each device, is one for 16 of 24 together: two calls.
def sort(scale, key, data):
    return jnp.sort(scale * jax.random.normal(jax.random.key(0), (1000,)))[::250]

analysis = jax.jit(jax.vmap(sort, (0, None, None))).lower(jnp.ones(2), None, None).compile()
analysis = analysis.memory_analysis()
memory = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
scales = list(np.linspace(1, 2, 24))
chunked = hg.sweep(sort, scales, memory=memory + 500)
assert (chunked.num_devices, chunked.chunk_size) == (8, 16), chunked[2:]
np.testing.assert_array_equal(chunked.results, hg.sweep(sort, scales).results)
"""


@pytest.mark.compiled
def test_hypergradients_are_the_same_one_by_one_and_on_eight_devices(tmp_path):
    """18 runs backwards: on 1 device, on 8 (24 with the padding), and stored, by themselves."""
    path = tmp_path / "results.npz"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", HYPERGRADIENTS + CHILD, str(path)],
        env=environment,
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=300,
    )
    names = {}
    exec(HYPERGRADIENTS, names)
    settings, keys, data = (names[name] for name in ("SETTINGS", "KEYS", "DATA"))

    stored = jax.jit(functools.partial(names["run"], adjoint=hg.Direct()))
    runs = [
        stored(jax.tree.map(jnp.float32, setting), key, data)
        for setting in settings
        for key in keys
    ]
    want = jax.tree.map(lambda *x: np.stack(x).reshape(6, 3), *runs)
    with np.load(path) as arrays:
        leaves = list(arrays.values())
    whole, one, few = leaves[:4], leaves[4:8], leaves[8:]
    rate, momentum, mismatches, value = whole
    assert not mismatches.any()
    np.testing.assert_allclose(value, want["value"], rtol=1e-5)
    np.testing.assert_allclose(rate, want["bars"]["learning_rate"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(momentum, want["bars"]["momentum"], rtol=1e-3, atol=1e-5)
    for a, b, c in zip(whole, one, few, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(a[:1], c, rtol=1e-4, atol=1e-5)


def by_hand():
    """Three settings of four seeds with losses known: one seed of setting 0 fails, all of 2."""
    losses = np.array([[1.0, 2.0, 3.0, np.nan], [3.0, 3.5, 4.0, 4.5], [np.inf] * 4], np.float32)
    settings = ({"rate": 0.1, "size": 2}, {"rate": 0.2, "size": 2}, {"rate": 0.1, "size": 30})
    paths = np.where(np.arange(3) > 0, losses[..., None] * [1, 1, 2], 0)
    return hg.Sweep(settings, {"loss": losses, "path": paths}, 12, 1)


class TestReport:
    def test_summary_is_over_seeds_that_did_not_fail(self):
        found = by_hand().summary("loss")
        np.testing.assert_allclose(found.mean, [2, 3.75, np.nan])
        spread = float(np.std([3, 3.5, 4, 4.5], ddof=1))
        np.testing.assert_allclose(found.spread, [1, spread, np.nan])
        np.testing.assert_array_equal(found.num_failed, [1, 0, 4])
        np.testing.assert_allclose(by_hand().summary("path").mean[0], [0, 2, 4])

    def test_settings_without_failures_are_better_than_any_with_some(self):
        best = by_hand().best("loss")
        assert (best.place, best.setting["rate"], best.mean) == (1, 0.2, 3.75)
        assert by_hand().select({"rate": 0.1}).best("loss")[:3] == (
            0,
            {"rate": 0.1, "size": 2},
            2.0,
        )
        with pytest.raises(ValueError, match="every run failed"):
            by_hand().select({"size": 30}).best("loss")

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            (
                lambda h, key, data: jax.random.normal(key),
                "keys is None, so that run's key is",
            ),
            (lambda h, key, data: {"z": h * 1j}, r"run returned complex64 at \['z'\]; return real"),
            (lambda h, key, data: jax.random.key(0), r"run returned key<fry> at its root"),
        ],
        ids=["no key", "complex", "key"],
    )
    def test_runs_that_cannot_be_compared(self, run, message):
        with pytest.raises(TypeError, match=message):
            hg.sweep(run, [1.0, 2.0])

    def test_most_may_be_best(self):
        settings = [0.5, 0.1, 0.9]
        found = hg.sweep(lambda hparams, key, data: hparams, settings)
        assert found.best("value", is_maximized=True).setting == 0.9
        assert found.best("value").setting == 0.1
        named = found._replace(results={"accuracy": found.results})
        assert named.best("accuracy").setting == 0.9
        assert str(named).startswith("3 settings x 1 seeds, the largest accuracy first")
        lines = found.table(is_maximized=True).splitlines()
        assert lines[0] == "3 settings x 1 seeds, the largest value first"
        assert [line.split()[0] for line in lines[2:]] == ["2*", "0", "1"]

    def test_the_table(self):
        assert str(by_hand()).splitlines() == [
            "3 settings x 4 seeds, the least loss first",
            "    rate  size        loss  failed",
            "1*   0.2     2  3.75 ± 0.6  0 of 4",
            "0    0.1     2       2 ± 1  1 of 4",
            "2    0.1    30           -  4 of 4",
        ]

    def test_json_has_every_number(self):
        read = json.loads(by_hand().to_json())
        assert read["settings"][2] == {"rate": 0.1, "size": 30}
        assert read["results"]["loss"][0] == [1.0, 2.0, 3.0, None]
        assert read["num_failed"] == [1, 0, 4]

    def test_the_heat_map_has_the_means_in_their_cells(self):
        figure = by_hand().plot_heat_map("size", "rate", "loss")
        axes = figure.axes[0]
        cells = np.ma.filled(axes.images[0].get_array(), np.nan)
        np.testing.assert_allclose(cells, [[2, np.nan], [3.75, np.nan]])
        assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "30"]
        assert [t.get_text() for t in axes.get_yticklabels()] == ["0.1", "0.2"]
        assert [t.get_text() for t in axes.texts] == ["2", "failed", "3.75"]
        assert axes.patches[0].get_xy() == pytest.approx((-0.48, 0.52))  # around the best

    @pytest.mark.parametrize(
        ("values", "is_maximized", "ends", "extend"),
        [
            ([1.0, 1.5, 2.0, 9.0, 1e9], False, (1, 9), "max"),
            ([1.0, 1.5, 2.0, 9.0, -1e9], True, (1, 9), "min"),
            ([1.0, 1.5, 2.0, 9.0, 9.5], False, (1, 9.5), "neither"),
            ([1.0, 1.0, 1.0, 1.0, 1e9], False, (1, 1e9), "neither"),  # none to tell apart
            ([0.3, 0.3001, 0.3002, 0.35, 0.36], False, (0.3, 0.36), "neither"),
            ([1.0, np.nan, 2.0, np.nan, np.nan], False, (1, 2), "neither"),
        ],
    )
    def test_colors_tell_apart_what_one_diverged_setting_does_not_hide(
        self, values, is_maximized, ends, extend
    ):
        settings = tuple({"rate": i, "size": 0} for i in range(5))
        found = hg.Sweep(settings, np.array(values)[:, None], 5, 1)
        axes = found.plot_heat_map("rate", "size", "value", is_maximized=is_maximized).axes[0]
        (image,) = axes.images
        assert (image.norm.vmin, image.norm.vmax) == ends
        assert image.colorbar.extend == extend
        assert [t.get_text() for t in axes.texts].count("failed") == np.isnan(values).sum()
        told = [t.get_text() for t in axes.texts if "diverged" in t.get_text()]
        assert told == ([] if extend == "neither" else [f"{values[-1]:.3g}\ndiverged"])
        grey = to_rgba("lightgrey")
        is_grey = [np.allclose(image.cmap(image.norm(x)), grey) for x in values if np.isfinite(x)]
        assert is_grey == [extend != "neither" and abs(x) == 1e9 for x in values if np.isfinite(x)]

    def test_curves_against_steps_and_against_a_hyperparameter(self):
        axes = by_hand().plot_curves("path").axes[0]
        assert all(tick == round(tick) for tick in axes.get_xticks())
        assert [line.get_label() for line in axes.lines][:2] == [
            "rate 0.1, size 2",
            "rate 0.2, size 2",
        ]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 2, 4])
        axes = by_hand().plot_curves("loss", x="rate").axes[0]
        assert [line.get_label() for line in axes.lines] == ["size 2", "size 30"]
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.1, 2], [0.2, 3.75]])

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda s: s.best("error"), "no result 'error'; there are loss, path"),
            (lambda s: s.best("path"), r"'path' has shape \(3,\) in each run, not one number"),
            (lambda s: s.table("path"), "not one number"),
            (lambda s: s.plot_curves("loss"), "not one axis of numbers"),
            (lambda s: s.plot_curves("loss", x="depth"), "settings have no 'depth'"),
            (lambda s: s.plot_heat_map("rate", "rate", "loss"), "x and y are both 'rate'"),
            (lambda s: s.select({"rate": 7.0}), "no setting has {'rate': 7.0}"),
            (
                lambda s: s._replace(
                    settings=tuple(x | {"size": 1} for x in s.settings)
                ).plot_heat_map("rate", "size", "loss"),
                "several settings have the same rate and size",
            ),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(by_hand())


@dataclasses.dataclass
class Unhashable:
    """As any dataclass that compares by its fields."""

    def __call__(self, hparams, key, data):
        return hparams["a"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"run": None}, TypeError, "run is None; it must be a function"),
        ({"settings": []}, ValueError, "settings is empty"),
        ({"settings": {"a": [1.0]}}, TypeError, r"hg.grid\(settings\)"),
        ({"settings": [{}]}, ValueError, r"settings\[0\] is an empty tree"),
        ({"settings": [{"a": 1.0}, {"b": 1.0}]}, ValueError, r"settings\[1\] has structure"),
        ({"settings": [{"a": 1.0}, {"a": np.ones(2)}]}, ValueError, r"\['a'\] has shape \(2,\)"),
        ({"settings": [{"a": "relu"}]}, TypeError, "has 'relu' at .*no number"),
        ({"keys": 0}, TypeError, "keys is 0, no PRNG keys"),
        ({"keys": np.arange(3.0)}, TypeError, "no PRNG keys"),
        ({"keys": jax.random.key(0)}, ValueError, r"keys has shape \(\)"),
        ({"keys": KEYS[:0]}, ValueError, "keys is empty"),
        ({"memory": 0}, ValueError, "memory is 0; it must be a positive number"),
        ({"devices": []}, ValueError, "devices is empty"),
        ({"devices": 2}, TypeError, "devices is 2; give a list of JAX's devices, such as"),
        ({"run": Unhashable()}, TypeError, "run is a Unhashable that cannot be hashed"),
        ({"run": lambda hparams, key, data: {}}, ValueError, "run returned no array"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"run": lambda hparams, key, data: hparams["a"], "settings": [{"a": 1.0}]}
    arguments |= {"data": None, "keys": KEYS} | change
    with pytest.raises(error, match=message):
        hg.sweep(
            arguments.pop("run"), arguments.pop("settings"), arguments.pop("data"), **arguments
        )


def test_inside_jit_it_says_so():
    with pytest.raises(TypeError, match="cannot run inside jit"):
        jax.jit(lambda x: hg.sweep(lambda h, key, data: h, [x]).results)(1.0)


class TestBench:
    def test_a_sweep_is_timed_beside_the_same_runs(self, tmp_path, capsys):
        path = tmp_path / "sweep.jsonl"
        words = "--cases 5/4 --num-steps 3 --num-seeds 2 --repeats 2 --chunks 1 --num-devices 1"
        (record,) = bench_sweep.main([*words.split(), "--out", str(path)])
        assert record["num_runs"] == 28
        assert list(record["seconds"]) == ["one by one", "sweep in 1"]
        assert all(len(times) == 2 for times in record["seconds"].values())
        for way, ratio in record["ratios"].items():
            least = record["least"]
            assert ratio == pytest.approx(least[way] / least["one by one"])
        assert record["difference"] < 1e-4
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["ratios"] == record["ratios"]
        assert "28 runs of 3 steps" in capsys.readouterr().out
