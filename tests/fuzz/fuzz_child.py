"""Spoils arguments of a callable one at a time, in a process of its own.

    python -m tests.fuzz.fuzz_child FILE FIRST CALLABLE ...

Two lines of JSON a case go to FILE: what is tried, and then what became of it, so that a case that
has no second line took the process with it. FIRST is how many cases are done already.
"""

import inspect
import json
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax
from tests.fuzz.fuzz_calls import CALLS, NUMBERS, ODD, Call

LIBRARY = str(Path(hgrad_jax.__file__).parent)
ROOM = 4 << 30
SECONDS = 120  # which a busy machine needs
INHERITED = ("parent", "name")  # of flax's modules
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def cases(call: Call) -> list[tuple[str, str]]:
    """Every argument with every odd value."""
    is_module = hasattr(call.function, "apply")
    left_out = (*call.kept, *(INHERITED if is_module else ()))
    given = [p.name for p in _parameters(call) if p.kind not in VARIADIC]
    given += [name for name in call.given if name not in given]  # of **settings
    given += [call.extra[0]] if call.extra else []
    return [(name, odd) for name in given if name not in left_out for odd in ODD]


def called(call: Call, name: str | None = None, value: Any = None) -> Any:
    """What a call comes to, with one of its arguments replaced."""
    given, extra = dict(call.given), ()
    if call.extra is not None:
        extra = (value,) if name == call.extra[0] else call.extra[1]
    if name is not None and (call.extra is None or name != call.extra[0]):
        given[name] = value
    first = [given.pop(p.name) for p in _parameters(call) if extra and p.name in given]
    return call.use(call.function(*first, *extra, **given))


def _parameters(call: Call) -> list[inspect.Parameter]:
    return list(inspect.signature(call.function).parameters.values())


def is_finite(tree: Any) -> bool:
    """Whether no number of a pytree is infinite or NaN."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, float | np.ndarray | jax.Array)]
    floats = [x for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return all(bool(np.isfinite(np.asarray(x)).all()) for x in floats)


def outcome(call: Call, name: str, odd: str) -> dict[str, Any]:
    """What becomes of a call with one odd argument: accepted, clear, raw, or nan."""
    try:
        found = called(call, name, ODD[odd])
    except call.may_raise:
        return {"kind": "clear"}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        is_own = frames[-1].filename.startswith(LIBRARY)
        words = "|".join(map(re.escape, (name, name.replace("_", " "), *call.also)))
        is_named = re.search(rf"\b({words})\b", str(error)) is not None
        ours = [f for f in frames if f.filename.startswith(LIBRARY)] or frames
        return {
            "kind": "clear" if is_own and is_named else "raw",
            "said": f"{type(error).__name__}: {str(error)[:200]}",
            "where": f"{Path(ours[-1].filename).name}:{ours[-1].lineno}",
        }
    is_asked = name in NUMBERS or name in call.numbers
    return {"kind": "accepted" if is_asked or is_finite(found) else "nan"}


def limited() -> None:
    """Lets this process take some gigabytes more, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(file: str, first: int, names: list[str]) -> None:
    """Goes through the cases of some callables from one of them on."""
    warnings.simplefilter("ignore")
    tried = [(name, case) for name in names for case in cases(CALLS[name])]
    with open(file, "a", buffering=1) as lines:
        for name, (argument, odd) in tried[first:]:
            limited()
            what = {"callable": name, "argument": argument, "value": odd}
            lines.write(json.dumps(what) + "\n")
            signal.alarm(SECONDS)  # which ends the process
            begun = time.perf_counter()
            found = outcome(CALLS[name], argument, odd)
            found["seconds"] = time.perf_counter() - begun
            signal.alarm(0)
            lines.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
