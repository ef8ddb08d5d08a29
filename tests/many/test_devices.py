import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.many.data_parallel import BATCH_PARTS
from tests.shared import devices_child, tune_child
from tests.shared.devices_child import NUM_DEVICES

pytestmark = pytest.mark.compiled

ROOT = Path(__file__).parents[2]


def child(*arguments, num_devices=NUM_DEVICES, is_double=False):
    """Starts a Python process that sees so many devices."""
    flags = {
        "xla_force_host_platform_device_count": num_devices,
        # Else a device that waits half a minute for one that is still compiling ends its process.
        "xla_cpu_collective_timeout_seconds": 900,
        "xla_cpu_collective_call_terminate_timeout_seconds": 900,
    }
    environment = os.environ | {
        "XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items()),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(is_double)),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, cwd=ROOT)


def finish(*children):
    try:
        for each in children:
            assert each.wait(timeout=300) == 0
    finally:
        for each in children:
            each.kill()
            each.wait()


def read(folder, process=0):
    with np.load(folder / f"results_{process}.npz") as found:
        return dict(found)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def reference():
    """One run after the other, on one device, with whole batches."""
    data, rates, keys = devices_child.problem()
    jitted = jax.jit(devices_child.run)
    runs = [jitted(rate, key, data) for rate, key in zip(rates, keys, strict=True)]
    seeds = jax.tree.map(lambda *x: np.stack(x), *runs)
    first_three = jax.tree.map(lambda x: x[:3], seeds)
    return {"seeds": seeds, "parts": first_three}


def test_one_device_eight_devices_and_two_processes_agree(tmp_path):
    """Bit for bit between one process of eight devices and two of four; to rounding with one."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    finish(child("-m", "tests.shared.devices_child", one))
    address = f"localhost:{free_port()}"
    several = ("-m", "tests.shared.devices_child", two, address, 2)
    finish(*(child(*several, process, num_devices=NUM_DEVICES // 2) for process in range(2)))

    eight, first, second = read(one), read(two, 0), read(two, 1)
    assert set(eight) == set(first) == set(second)
    for name, found in eight.items():
        assert found.tobytes() == first[name].tobytes() == second[name].tobytes(), name
        if name.startswith("['parts']"):
            assert found.tobytes() == eight[name.replace("parts", "again")].tobytes()
        if name.startswith("['tune']"):
            assert found.tobytes() == eight[name.replace("tune", "not resumed")].tobytes()
        if name.endswith("['mismatches']"):
            assert not found.any()
    assert sum(name.endswith("['mismatches']") for name in eight) == 3

    for path, want in jax.tree_util.tree_leaves_with_path(reference()):
        found = eight[jax.tree_util.keystr(path)]
        scale = np.abs(want).max()
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * scale)
    settings = {"num_runs": 6, "metrics": tune_child.metrics, "test": tune_child.TEST}
    for name, want in tune_child.bits(tune_child.tune(num_meta_steps=4, **settings)).items():
        np.testing.assert_allclose(eight[f"['tune']['{name}']"], want, rtol=1e-5, atol=1e-6)


def test_a_shared_batch_has_the_whole_one_s_derivatives():
    """In float64, on eight devices; see `devices_child.check_float64`."""
    command = "from tests.shared.devices_child import check_float64; check_float64()"
    finish(child("-c", command, is_double=True))


@dataclasses.dataclass
class Scaled:
    by: np.ndarray

    def __call__(self, x):
        return self.by * x


class TestOverDevices:
    def test_on_one_device_it_is_vmap_and_is_compiled_once(self):
        traces = []

        def run(a, b):
            traces.append(1)
            return {"sum": a["x"] + b, "key": a["key"]}

        a = {"x": jnp.arange(6.0).reshape(3, 2), "key": jax.random.split(jax.random.key(0), 3)}
        for offset in (1.0, 2.0):
            found = hg.over_devices(run, (0, None))(a, offset)
            np.testing.assert_array_equal(found["sum"], np.arange(6.0).reshape(3, 2) + offset)
            assert (found["key"] == a["key"]).all()
        assert len(traces) == 1

    @pytest.mark.parametrize(
        ("in_axes", "settings", "args", "error", "message"),
        [
            (1, {}, (), TypeError, "in_axes is 1; give 0 or None"),
            ((0, True), {}, (), TypeError, r"in_axes is \(0, True\)"),
            (0, {"batch_parts": 0}, (), ValueError, "batch_parts is 0; it must be a positive int"),
            (0, {"batch_parts": 3}, (), ValueError, "3, but there are 1 devices"),
            (0, {"devices": []}, (), ValueError, "devices is empty"),
            (0, {"devices": 2}, (), TypeError, r"devices is 2; give a list of JAX's devices"),
            (None, {"devices": 2}, (), TypeError, r"devices is 2; give a list of JAX's devices"),
            (0, {"devices": ["cpu"]}, (), TypeError, r"devices is \['cpu'\]; give a list of"),
            (0, {}, ([1.0, 2.0], [1.0]), ValueError, r"in common: got argument 0\[0\] \[\], "),
            (0, {}, (np.ones(3), np.ones(2)), ValueError, r"argument 0 \[3\], argument 1 \[2\];"),
            (0, {}, (np.ones((0, 2)), None), ValueError, r"got argument 0 \[0\]; give None for"),
            ((0, None), {}, (np.ones(2),), ValueError, "in_axes has 2 entries, but .* with 1"),
        ],
    )
    def test_bad_input(self, in_axes, settings, args, error, message):
        with pytest.raises(error, match=message):
            hg.over_devices(lambda x, y: x, in_axes, **settings)(*args)

    def test_no_function(self):
        with pytest.raises(TypeError, match="function is 3; it must be a function"):
            hg.over_devices(3)  # pyright: ignore[reportArgumentType]

    def test_a_function_that_cannot_be_hashed(self):
        with pytest.raises(TypeError, match="function is a Scaled that cannot be hashed"):
            hg.over_devices(Scaled(np.ones(2)))
        found = hg.over_devices(lambda *args: Scaled(np.ones(2))(*args))(np.ones(3))
        assert found.shape == (3, 2)


class TestDataParallel:
    def loss(self, batch):
        parallel = hg.data_parallel(lambda params, hparams, batch, key: jnp.mean(batch) * params)
        return jax.vmap(lambda _: parallel(1.0, {}, batch, None), axis_name=BATCH_PARTS)(np.ones(4))

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            (np.ones(10), "the batch has 10 examples, which 4 devices cannot share equally"),
            (np.ones(0), "the batch has 0 examples, which 4"),
            ((np.ones((8, 2)), np.ones(4)), r"shapes \[\[8, 2\], \[4\]\], which have no leading"),
            ((np.ones(8), 1.0), r"shapes \[\[8\], \[\]\], which have no leading axis"),
            (None, r"shapes \[\], which"),
        ],
    )
    def test_batches_that_cannot_be_shared(self, batch, message):
        with pytest.raises(ValueError, match=message):
            self.loss(batch)

    def test_where_no_devices_share_a_batch(self):
        rule = hg.heavy_ball(hg.data_parallel(lambda params, hparams, batch, key: params))
        hparams = {"learning_rate": 0.1, "momentum": 0.9}
        with pytest.raises(ValueError, match=r"no devices share its batch here; .* batch_parts=d"):
            hg.unroll(hg.Run(rule, num_steps=2), jnp.float32(1), hparams, jnp.ones(8))

    def test_no_function(self):
        with pytest.raises(TypeError, match=r"loss is 1.0, but is called as loss\(params"):
            hg.data_parallel(1.0)  # pyright: ignore[reportArgumentType]


def test_mean_and_spread_over_seeds():
    draws = np.random.RandomState(0).standard_normal((2, 5, 3)).astype(np.float32)
    found = hg.mean_and_spread({"rate": draws}, axis=1)
    np.testing.assert_allclose(found.mean["rate"], draws.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.spread["rate"], draws.std(1, ddof=1), rtol=1e-5)
    assert np.isnan(hg.mean_and_spread(draws[:, :1], axis=1).spread).all()


@pytest.mark.parametrize(
    ("tree", "axis", "error", "message"),
    [
        (np.ones((3, 2)), 5, ValueError, r"axis is 5, but tree has the shape \(3, 2\); name the"),
        ({"a": 1.0}, 0, ValueError, r"axis is 0, but tree\['a'\] has the shape \(\)"),
        (np.ones((0, 2)), 0, ValueError, r"shape \(0, 2\); .* of which there is at least one"),
        (np.ones((3, 2)), "runs", TypeError, "axis is 'runs'; it must be an int"),
        ({"a": "x"}, 0, TypeError, r"tree\['a'\] is 'x'; it must be an array with an axis of runs"),
    ],
)
def test_axes_that_are_none_of_runs(tree, axis, error, message):
    with pytest.raises(error, match=message):
        hg.mean_and_spread(tree, axis=axis)


def test_tune_refuses_parts_that_the_devices_do_not_make():
    with pytest.raises(ValueError, match="batch_parts is 2, but there are 1 devices"):
        tune_child.tune(batch_parts=2)
