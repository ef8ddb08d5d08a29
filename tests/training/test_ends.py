"""Ctrl-C and SIGTERM: what was done is kept, a sentence says where, and it goes on bit for bit."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

import hgrad_jax as hg
from hgrad_jax.training.interruption import a_step, interruption
from tests.shared import fit_child, tune_child
from tests.shared.fits import fit_quadratic
from tests.shared.tunings import read_lines

CHILD = """
import sys
from experiments.common import script
from tests.shared import {name}
script({name}.main)
"""


def interrupted(name, folder, is_far_enough, signum):
    """Sends a child a signal; returns its exit status, and what it wrote to standard error."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(name=name), str(folder), str(folder) + ".npz"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    try:
        while child.poll() is None and not is_far_enough():
            time.sleep(0.005)
        os.kill(child.pid, signum)
        said = child.stderr.read()
    finally:
        child.kill()
        child.stderr.close()
        status = child.wait()
    return status, said


def epochs(folder):
    found = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.exists() else []
    return max(found, default=0)


class TestChildren:
    @pytest.mark.parametrize(
        ("signum", "code"),
        [
            pytest.param(signal.SIGINT, 130),
            pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        ],
    )
    def test_tune(self, signum, code, tmp_path):
        folder = tmp_path / "run"
        status, said = interrupted("tune_child", folder, lambda: len(read_lines(folder)), signum)
        done = len(read_lines(folder))
        assert (status, said) == (
            code,
            f"\ntune was interrupted; {done} meta-steps are kept in {folder}, and the same call "
            "with that folder goes on from there.\n",
        )
        assert 0 < done == epochs(folder / "checkpoints") < tune_child.NUM_META_STEPS
        found = tune_child.tune_at_length(folder)
        assert found.resumed_at == done
        want = tune_child.bits(whole_tuning())
        assert {k: v.tobytes() for k, v in tune_child.bits(found).items()} == {
            k: v.tobytes() for k, v in want.items()
        }

    @pytest.mark.slow
    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_fit(self, signum, code, tmp_path):
        folder = tmp_path / "run"
        status, said = interrupted("fit_child", folder, lambda: epochs(folder) > 1, signum)
        done = epochs(folder)
        assert status == code
        assert said.endswith(
            f"fit was interrupted; {done} epochs are kept in {folder}, and the same call with that "
            "folder goes on from there.\n"
        )
        assert "Traceback" not in said
        found = fit_child.train(folder)
        assert found.resumed_at == done
        want = fit_child.bits(fit_child.train(None))
        assert {k: v.tobytes() for k, v in fit_child.bits(found).items()} == {
            k: v.tobytes() for k, v in want.items()
        }


@functools.cache
def whole_tuning():
    return tune_child.tune_at_length(None)


def sends(signum, at):
    """Returns metrics during whose evaluation `at` the process gets a signal."""
    calls = []

    def send(x):
        calls.append(0)
        if len(calls) == at:
            signal.raise_signal(signum)
        return x

    def metrics(params, data):
        norm = jnp.sum(params**2)
        return {"loss": jax.pure_callback(send, jax.ShapeDtypeStruct((), norm.dtype), norm)}

    return metrics


class TestInThisProcess:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_the_epoch_is_kept_whatever_the_schedule_of_checkpoints(self, signum, tmp_path):
        before = signal.getsignal(signum)
        choice = hg.Checkpoints(tmp_path, every=100)
        with pytest.raises(hg.Interrupted, match=r"; 2 epochs are kept in .*goes on") as raised:
            fit_quadratic(9, checkpoints=choice, metrics=sends(signum, at=3))
        assert raised.value.signum == signum
        assert isinstance(raised.value, KeyboardInterrupt)
        assert not isinstance(raised.value, Exception)
        assert epochs(tmp_path) == 2
        assert signal.getsignal(signum) is before

    def test_nothing_is_kept_without_a_folder(self):
        with pytest.raises(hg.Interrupted, match="keeps nothing without a folder; pass checkpoi"):
            fit_quadratic(9, metrics=sends(signal.SIGINT, at=3))

    def test_a_sweep_keeps_nothing(self):
        def run(hparams, key, data):
            signal.raise_signal(signal.SIGINT)  # while it is traced
            return hparams

        with pytest.raises(hg.Interrupted, match="sweep was interrupted, and keeps nothing before"):
            hg.sweep(run, [1.0, 2.0])

    def test_a_second_signal_ends_at_once(self):
        done = []

        def work(count):
            with interruption(lambda: "kept"), a_step() as is_last:
                for _ in range(count):
                    assert is_last() == bool(done)
                    signal.raise_signal(signal.SIGINT)
                    done.append("a signal")

        for count in (2, 1):  # the second time, nothing is left of the first
            done.clear()
            with pytest.raises(hg.Interrupted, match="kept"):
                work(count)
            assert done == ["a signal"]

    def test_the_program_s_own_handlers_stay(self):
        came = []
        before = signal.signal(signal.SIGTERM, lambda *args: came.append(args[0]))
        try:
            with interruption(lambda: ""), a_step() as is_last:
                signal.raise_signal(signal.SIGTERM)
                assert not is_last()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert came == [signal.SIGTERM]

    def test_the_innermost_of_two_gives_the_sentence(self):
        with (
            pytest.raises(hg.Interrupted, match="inner"),
            interruption(lambda: "outer"),
            interruption(lambda: "inner"),
        ):
            raise KeyboardInterrupt

    def test_another_thread_sets_no_handler(self):
        before, found = signal.getsignal(signal.SIGINT), []

        def work():
            with interruption(lambda: ""), a_step():
                found.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [before]

    def test_it_goes_from_one_process_to_another(self):
        error = pickle.loads(pickle.dumps(hg.Interrupted("kept", signal.SIGTERM)))
        assert (str(error), error.signum) == ("kept", signal.SIGTERM)
