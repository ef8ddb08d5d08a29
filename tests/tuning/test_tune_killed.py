"""A tuning that was killed ends with the bits of one that never was."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
from matplotlib.image import imread

from tests.shared import tune_child
from tests.shared.tunings import read_lines


class TestKilled:
    def test_a_killed_tuning_ends_with_the_bits_of_one_that_never_was(self, tmp_path):
        moments = random.Random(5)
        folder, result = tmp_path / "run", tmp_path / "result.npz"
        command = [sys.executable, "-m", "tests.shared.tune_child", str(folder), str(result)]
        for at in (1, 6, 11):
            child = subprocess.Popen(command)
            try:
                while child.poll() is None and len(read_lines(folder)) < at:
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.1))
                os.kill(child.pid, signal.SIGKILL)
            finally:
                child.kill()
                status = child.wait()
            assert status == -signal.SIGKILL, f"the child ended before it was killed: {status}"
            assert at <= len(read_lines(folder)) < tune_child.NUM_META_STEPS
            for figure in folder.glob("[!.]*.png"):
                imread(figure)
        assert not result.exists()
        subprocess.run(command, check=True)
        want = tune_child.bits(tune_child.tune_at_length(None))
        with np.load(result) as found:
            assert set(found) == set(want)
            for name in want:
                assert found[name].tobytes() == want[name].tobytes()
        assert [line["meta_step"] for line in read_lines(folder)] == list(
            range(tune_child.NUM_META_STEPS)
        )
