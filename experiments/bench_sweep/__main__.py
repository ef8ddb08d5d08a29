"""What a sweep costs, beside the same runs one after the other.

14 settings (7 learning rates, with momentum and without) x 8 seeds of a small net on the digits:
`hg.sweep` against a loop over the same function, jitted, both compiled before and timed in turn
until the results are there. The sweep has a device for each core, as `jax_num_cpu_devices` makes
them; the loop has all cores for each of its products. Told is the ratio of the least times, and
how far the results are apart (runs that leave the plausible have rounding errors of their own: the
learning rates do not).

Examples:
    python -m experiments.bench_sweep --repeats 3
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import hgrad_jax as hg
from experiments.common import environment, option, parse, script, write_json_line
from hgrad_jax.data import load_digits, minibatches
from hgrad_jax.models import MLP, cross_entropy
from hgrad_jax.show.text_table import aligned

SETTINGS = hg.grid(
    {"learning_rate": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1], "momentum": [0.0, 0.9]}
)
CORES = os.cpu_count() or 1
CASES = ("10/4", "50/10", "50-50/50")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    cases: tuple[str, ...] = option(CASES, "HIDDEN/BATCH: hidden units of each layer, batch size")
    num_steps: int = option(280, "training steps of a run")
    num_seeds: int = option(8, "of each of the 14 settings")
    num_devices: int = option(CORES, "devices that JAX makes of the processor")
    chunks: tuple[int, ...] = option((1, 4), "in how many calls a sweep is done, by its memory")
    repeats: int = option(5, "timed calls of each, in turn")
    out: str = option("results/bench/sweep.jsonl", "file that a line a case is added to")

    def __post_init__(self):
        for name in ("num_steps", "num_seeds", "num_devices", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for case in self.cases:
            hidden, _, batch = case.partition("/")
            if not batch.isdecimal() or not all(x.isdecimal() for x in hidden.split("-")):
                raise ValueError(f"there is no case {case!r}: write it as in 50-50/10.")


def make_run(case: str, num_steps: int) -> Any:
    """Returns `run(hparams, key, data)`, one training and the loss at its end."""
    hidden, _, batch = case.partition("/")
    model = MLP((*map(int, hidden.split("-")), 10), activation=nn.tanh)

    def loss(params: Any, hparams: Any, batch: Any, key: Any) -> jax.Array:
        logits = model.apply({"params": params}, batch.inputs, train=True)
        return cross_entropy(jnp.asarray(logits), batch.labels)

    training = hg.Run(hg.heavy_ball(loss), num_steps=num_steps, batch_fn=minibatches(int(batch)))

    def run(hparams: Any, key: Any, data: Any) -> jax.Array:
        params = model.init(key, data.inputs[:1], train=False)["params"]
        out = hg.unroll(training, params, hparams, data, key=key)
        return loss(out.params, None, data, None)

    return run


def measure(case: str, config: Config) -> dict[str, Any]:
    """Returns seconds of each way, ratios to the loop, and the greatest relative difference."""
    run = make_run(case, config.num_steps)
    data = jax.tree.map(lambda x: jnp.asarray(x[:1000]), load_digits())
    keys = jax.random.split(jax.random.key(0), config.num_seeds)
    jitted = jax.jit(run)
    # Made before, so that the loop is nothing but calls.
    runs = [(jax.tree.map(jnp.float32, s), key) for s in SETTINGS for key in keys]

    def one_by_one() -> np.ndarray:
        return np.array([jitted(hparams, key, data).block_until_ready() for hparams, key in runs])

    def swept(memory: float | None) -> np.ndarray:
        return hg.sweep(run, SETTINGS, data, keys=keys, memory=memory).results.ravel()

    memories = {1: None} | {
        n: memory_for(run, data, -(-len(runs) // n)) for n in config.chunks if n > 1
    }
    ways = {"one by one": one_by_one} | {
        f"sweep in {n}": (lambda n=n: swept(memories[n])) for n in config.chunks
    }
    found = {name: way() for name, way in ways.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.repeats):
        # In turn, so that a machine that slows down slows down all of them.
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begun)
    want = found.pop("one by one")
    differences = [np.max(np.abs(x - want) / want) for x in found.values()]
    least = {name: min(times) for name, times in seconds.items()}
    return {
        "case": case,
        "num_runs": len(runs),
        "seconds": seconds,
        "least": least,
        "ratios": {name: least[name] / least["one by one"] for name in found},
        "difference": float(max(differences)),
    }


def memory_for(run: Any, data: Any, num_runs: int) -> float:
    """Returns the bytes that this many runs take in one call on each device."""
    hparams = jax.tree.map(lambda *x: jnp.resize(jnp.array(x), (num_runs,)), *SETTINGS)
    keys = jax.random.split(jax.random.key(0), num_runs)
    program = jax.jit(jax.vmap(run, (0, 0, None))).lower(hparams, keys, data).compile()
    analysis: Any = program.memory_analysis()
    return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / len(jax.devices())


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures what the command line asks for, prints a table and adds lines of JSON to a file.

    Raises:
      SystemExit: after --help, or with a message on a wrong option.
    """
    config = parse(Config, argv, __doc__)
    if config.num_devices > 1:
        jax.config.update("jax_num_cpu_devices", config.num_devices)
    records = []
    for case in config.cases:
        records.append(measure(case, config))
        line = {"experiment": "bench_sweep", "environment": environment()}
        write_json_line(
            Path(config.out), line | {"config": dataclasses.asdict(config)} | records[-1]
        )
    ways = list(records[0]["ratios"])
    rows = [
        [
            record["case"],
            f"{record['least']['one by one']:.3f}",
            *(f"{record['least'][way]:.3f} ({record['ratios'][way]:.2f})" for way in ways),
            f"{record['difference']:.0e}",
        ]
        for record in records
    ]
    print(f"{records[0]['num_runs']} runs of {config.num_steps} steps; seconds (ratio)")
    head = ["net/batch", "one by one", *ways, "difference"]
    print("\n".join(aligned([head, *rows])))
    return records


if __name__ == "__main__":
    script(main)
