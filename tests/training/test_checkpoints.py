import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.tools.digest import digest
from hgrad_jax.training.snapshot import Snapshot
from hgrad_jax.training.store import Store

STATE = {
    "weights": jnp.linspace(-1, 1, 7, dtype=jnp.float32),
    "half": jnp.arange(3, dtype=jnp.bfloat16) / 3,
    "count": jnp.int32(5),
    "key": jax.random.key(8),
    "empty": jnp.zeros((0, 3)),
    "is_on": jnp.array(True),
}
PARAMS = {"weights": STATE["weights"]}


def snapshot(epoch):
    state = STATE | {"weights": STATE["weights"] * epoch, "key": jax.random.key(epoch)}
    metrics = {"train_loss": [1 / (e + 3) for e in range(epoch + 1)]}
    step_loss = [np.full(2, e, np.float32) for e in range(epoch)]
    return Snapshot(state, {"weights": state["weights"] + 1}, metrics, step_loss)


def open_store(folder, fingerprint="this run", keep=2):
    return Store(hg.Checkpoints(folder, keep=keep), {"program": fingerprint})


def read(folder):
    with open_store(folder) as store:
        return store.read(STATE, PARAMS)


def assert_same(found, want):
    assert digest(found) == digest(want)
    assert jax.tree.structure(found) == jax.tree.structure(want)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "run"
    with open_store(folder) as store:
        assert store.read(STATE, PARAMS) is None
        for epoch in (1, 2):
            store.write(epoch, snapshot(epoch))
    return folder


class TestStore:
    def test_reads_every_bit_of_the_last_one(self, written):
        found = read(written)
        assert found is not None
        assert_same(found, snapshot(2))
        assert found.state["half"].dtype == jnp.bfloat16
        assert found.state["key"] == jax.random.key(2)

    def test_without_best_parameters_and_losses(self, tmp_path):
        bare = snapshot(1)._replace(best=None, step_loss=[])
        with open_store(tmp_path) as store:
            store.write(1, bare)
        assert_same(read(tmp_path), bare)

    def test_what_a_kill_leaves_half_written_is_passed_over(self, written, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(written, folder)
        shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-17")
        assert_same(read(folder), snapshot(2))

    @pytest.mark.parametrize("damage", ["flipped", "cut", "deleted"])
    def test_no_damage_goes_unnoticed(self, damage, written, tmp_path):
        """Whatever file is damaged, it is told, or the numbers of a whole checkpoint come back."""
        files = [p for p in (written / "2").rglob("*") if p.is_file() and p.stat().st_size]
        told = 0
        for number, file in enumerate(files):
            folder = tmp_path / str(number)
            shutil.copytree(written, folder)
            path = folder / file.relative_to(written)
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 0x55
            if damage == "deleted":
                path.unlink()
            else:
                path.write_bytes(raw if damage == "flipped" else raw[: len(raw) // 2])
            try:
                found = read(folder)
            except hg.CheckpointError as error:
                found, message = None, str(error)
            else:
                message = ""
            if found is None:
                told += 1
                assert f"{folder}/2 is damaged" in message
                shutil.rmtree(folder / "2")
                assert_same(read(folder), snapshot(1))
            else:
                assert_same(found, snapshot(len(found.step_loss)))
        time.sleep(0.2)
        assert told >= 2

    def test_another_run_is_told(self, written):
        with (
            open_store(written, "another run") as store,
            pytest.raises(hg.CheckpointError, match="of another run, which differs in program;"),
        ):
            store.read(STATE, PARAMS)


def test_digest_sees_values_shapes_dtypes_and_places():
    x = np.arange(6, dtype=np.float32)
    others = [x[::-1], x.reshape(2, 3), x.astype(np.float64), {"a": x}, [x, x], None]
    digests = {digest(tree) for tree in [x, *others]}
    assert len(digests) == 7
    assert digest(x) == digest(jnp.asarray(x))
    assert digest(x[::2]) == digest(x[::2].copy())
