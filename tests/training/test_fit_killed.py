"""A training that was killed ends with the bits of one that never was."""

import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.shared import fit_child


def killed(folder, result, at_epoch, delay):
    """Starts the child, kills it some time after it began an epoch; returns its exit status."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.shared.fit_child", str(folder), str(result)]
    )
    try:
        while child.poll() is None and last_epoch(folder) < at_epoch:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        status = child.wait()
    return status


def last_epoch(folder):
    names = [path.name for path in Path(folder).iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def killed_and_resumed(folder, epochs, seed):
    """Kills the run some time after each of the epochs, and lets it go on from its checkpoints."""
    moments = random.Random(seed)
    result = folder / "result.npz"
    for epoch in epochs:
        delay = moments.uniform(0, 0.1)
        status = killed(folder / "run", result, epoch, delay)
        assert status == -signal.SIGKILL, f"the child ended before it was killed: {status}"
        assert not result.exists()
        assert epoch <= last_epoch(folder / "run") < 12
    subprocess.run(
        [sys.executable, "-m", "tests.shared.fit_child", str(folder / "run"), str(result)],
        check=True,
    )
    with np.load(result) as found:
        return dict(found)


class TestKilled:
    @functools.cached_property
    def whole(self):
        """The bits of the run that nobody killed, and that wrote no checkpoints."""
        return fit_child.bits(fit_child.train(None))

    def assert_same(self, found):
        assert found.keys() == self.whole.keys()
        for name, want in self.whole.items():
            assert found[name].tobytes() == want.tobytes()

    def test_a_killed_run_ends_with_the_bits_of_one_that_never_was(self, tmp_path):
        self.assert_same(killed_and_resumed(tmp_path, [1, 5], seed=0))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_at_many_moments(self, tmp_path, seed):
        self.assert_same(killed_and_resumed(tmp_path, [1, 2, 4, 5, 7, 8], seed=seed))
