"""Odd arguments to every public callable, one at a time, end in a sentence that names them."""

import collections
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_CHUNKS, NUM_PROCESSES = 12, 2


def test_every_public_callable_is_tried():
    from tests.fuzz import fuzz_calls

    known = {*fuzz_calls.CALLS, *fuzz_calls.RECORDS, *fuzz_calls.NO_ARGUMENTS}
    assert not set(fuzz_calls.public_names()) - known


def run_chunk(names, file):
    """Every case of some callables: what was tried and what became of it."""
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # to compile fast
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    tried = []
    while True:
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.fuzz_child",
            str(file),
            str(len(tried)),
            *names,
        ]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        if len(lines) % 2:
            kind = "time-out" if ended.returncode == -14 else "crash"
            said = f"exit status {ended.returncode} (-n: signal n): {ended.stderr[-300:]}"
            line = {"kind": kind, "said": said, "where": "", "seconds": 0}
            lines.append(line)
            with file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        before = len(tried)
        tried = [what | found for what, found in zip(lines[::2], lines[1::2], strict=True)]
        if ended.returncode == 0:
            return tried
        assert len(tried) > before, ended.stderr


def report(tried, seconds):
    """One line of figures, and the callables with most errors that do not name the argument."""
    kinds = collections.Counter(case["kind"] for case in tried)
    names = len({case["callable"] for case in tried})
    figures = (
        f"{kinds['accepted']} accepted, {kinds['clear']} refused by name, {kinds['raw']} raw "
        f"({kinds['raw'] / len(tried):.2%}), {kinds['nan']} NaN, {kinds['crash']} aborted, "
        f"{kinds['time-out']} timed out"
    )
    bad = [case for case in tried if case["kind"] not in ("accepted", "clear")]
    worst = collections.Counter(case["callable"] for case in bad).most_common(20)
    lines = [f"{len(tried)} calls of {names} callables in {seconds:.0f} s: {figures}"]
    lines += [f"{count:5d}  {name}" for name, count in worst]
    for case in bad:
        call = f"{case['callable']}({case['argument']}={case['value']})"
        lines.append(f"  {case['kind']} {call}: {case.get('where')} {case.get('said')!r}")
    return "\n".join(lines)


@pytest.mark.fuzz
def test_odd_arguments_are_taken_or_refused_by_name(tmp_path):
    from tests.fuzz.fuzz_calls import CALLS

    chunks = [list(CALLS)[i::NUM_CHUNKS] for i in range(NUM_CHUNKS)]
    files = [tmp_path / f"chunk{i}.jsonl" for i in range(NUM_CHUNKS)]
    begun = time.perf_counter()
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        tried = [case for chunk in pool.map(run_chunk, chunks, files) for case in chunk]
    print(report(tried, time.perf_counter() - begun))
    kinds = collections.Counter(case["kind"] for case in tried)
    assert not kinds["nan"] + kinds["crash"] + kinds["time-out"]
    assert kinds["raw"] < 0.01 * len(tried)
