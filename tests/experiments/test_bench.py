import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import hgrad_jax as hg
from experiments.bench import __main__ as bench
from experiments.bench import programs as bench_programs
from experiments.bench import report as bench_report

pytestmark = pytest.mark.compiled

METHODS = ["Direct()", "Checkpointed()", "Checkpointed(branching=2)", "Reversible()"]
PARTS = {"learning_rate", "momentum", "l2", "params"}
NUM_STEPS = 40


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_program(records):
    return {record["program"]: record for record in records}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "new" / "bench.jsonl"
    case = f"softmax-{NUM_STEPS}"
    bench.main(["--cases", case, "--repeats", "2", "--out", str(path)])
    return read(path)


def test_every_program_is_measured(results):
    assert [r["program"] for r in results] == [*bench_programs.RIVALS, *METHODS]
    for record in results:
        assert (record["case"], record["num_steps"]) == (f"softmax-{NUM_STEPS}", NUM_STEPS)
        assert len(record["seconds"]) == 2
        assert 0 < record["min_seconds"] <= record["median_seconds"]
        assert record["ratio"] > 0
        assert record["compile_seconds"] > 0
        assert record["temp_bytes"] >= 0
        assert record["skipped"] is None
        assert record["environment"]["versions"]["jax"] == jax.__version__


def test_the_ratio_is_to_the_sum_of_both_halves_of_the_floor(results):
    ratios = {program: record["ratio"] for program, record in by_program(results).items()}
    assert ratios[bench_programs.PLAIN] + ratios[bench_programs.PRODUCTS] == pytest.approx(1)


def test_methods_agree(results):
    for method in METHODS:
        record = by_program(results)[method]
        assert record["reference"] == "Direct()"
        assert set(record["relative_errors"]) == PARTS
        assert record["relative_error"] == max(record["relative_errors"].values())
        assert record["relative_error"] < 1e-3
        assert record["is_finite"] is True
        assert record["is_restored"] is (True if method == "Reversible()" else None)


def test_storing_every_step_takes_the_most_memory(results):
    temp_bytes = {program: record["temp_bytes"] for program, record in by_program(results).items()}
    assert max(temp_bytes, key=lambda program: temp_bytes[program]) == "Direct()"


@pytest.fixture
def toys(monkeypatch):
    """Puts a program that stores [100, 100] numbers and one that stores none for the library's."""

    def bars(found):
        return {"bars": {"x": found}, "is_finite": jnp.isfinite(found), "is_restored": None}

    def toy_programs(problem):
        return dict.fromkeys(bench_programs.RIVALS, lambda *args: args[1]["momentum"]) | {
            "Direct()": lambda *args: bars(jnp.linalg.norm(jnp.cumsum(jnp.ones((100, 100)), 1))),
            "Checkpointed()": lambda *args: bars(args[1]["momentum"]),
            "Reversible()": lambda *args: bars(args[1]["momentum"] * jnp.nan),
        }

    monkeypatch.setattr(bench, "programs", toy_programs)


def test_what_needs_too_much_memory_is_not_run_and_says_why(toys, capsys):
    config = bench.Config(repeats=1, memory_limit=1e-5)
    records = by_program(bench.measure("softmax-2", config, Console(width=200)))
    direct, checkpointed = (records[method] for method in METHODS[:2])
    assert re.fullmatch(r".* GB of temporaries, limit 1e-05 GB", direct["skipped"])
    assert f"Direct() is not run: {direct['skipped']}" in capsys.readouterr().out
    assert direct["seconds"] == []
    assert (direct["min_seconds"], direct["ratio"]) == (None, None)
    assert checkpointed["reference"] == "Checkpointed()"
    assert checkpointed["relative_error"] == 0


def test_a_program_is_not_called_again_once_it_took_too_long(toys):
    config = bench.Config(repeats=3, max_seconds=1e-9)
    records = bench.measure("softmax-2", config, Console(file=io.StringIO()))
    assert all(len(record["seconds"]) == 1 for record in records)


def test_an_unsound_hypergradient_ends_the_program(toys, tmp_path):
    path = tmp_path / "bench.jsonl"
    with pytest.raises(SystemExit, match=re.escape("not finite: softmax-2 Reversible()")):
        bench.main(["--cases", "softmax-2", "--repeats", "1", "--out", str(path)])
    assert by_program(read(path))["Reversible()"]["is_finite"] is False


@pytest.mark.parametrize("name", ["softmax", pytest.param("adam", marks=pytest.mark.slow)])
def test_the_floor_trains_as_the_library_does(name):
    problem = bench.make_problem(name, 3, seed=0, data_dir=None)
    plain = bench_programs.programs(problem)[bench_programs.PLAIN]

    def trained(params, hparams, train, valid):
        return hg.unroll(problem.run, params, hparams, train).params

    found, expected = (jax.jit(program)(*problem.args) for program in (plain, trained))
    assert bench.relative_error(expected, problem.args[0]) > 1e-3
    assert bench.relative_error(found, expected) < 1e-5


def test_the_table_fits_a_terminal_and_names_the_case_that_is_lost(results):
    console = Console(width=80, file=(file := io.StringIO()))
    bench_report.print_table(console, results)
    seconds = {"Direct()": 0.5, "Reversible()": 1.0, "bare": 1.0, "apart": 1.25}
    slow = [{"case": "softmax-9", "program": p, "min_seconds": s} for p, s in seconds.items()]
    fast = [r | {"case": "mlp-9", "min_seconds": 1.0} for r in slow]
    bench_report.print_summary(console, [*fast, *slow], plain="bare", isolated="apart")
    shown = file.getvalue()
    assert "…" not in shown
    for method in METHODS:
        assert re.search(rf"softmax +{NUM_STEPS} +{re.escape(method)} +[\d.e-]+", shown)
    assert "softmax-9: isolating the gradient changes plain steps' time by +25.0%." in shown
    assert "slower than Direct(): softmax-9, 2.00" in shown


def test_a_folder_without_the_data_is_named():
    with pytest.raises(SystemExit, match="/nowhere/at/all"):
        bench.main(["--cases", "mlp-1", "--data-dir", "/nowhere/at/all"])


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "cnn", "adam"])
def test_every_problem_is_restored(name):
    problem = bench.make_problem(name, 50, seed=0, data_dir=None)
    methods = bench_programs.programs(problem)
    direct, exact = (
        jax.jit(methods[method])(*problem.args) for method in ("Direct()", "Reversible()")
    )
    assert exact["is_restored"]
    # Wider than a CPU needs: an accelerator may multiply matrices with fewer bits.
    assert bench.relative_error(exact["bars"], direct["bars"]) < 1e-2
