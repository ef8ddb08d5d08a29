"""Settings of all tests."""

import os
import pathlib
import signal

from hypothesis import HealthCheck, settings

from tests.campaign import campaign_figures

# Programs that were compiled once are kept in the checkout: a second run takes less than half as
# long, and tests that start processes find what others compiled. Set the variables to choose.
CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Compilation and busy machines make single examples slow; what is tested is their value.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def _flags():
    return {name: x for name, x in os.environ.items() if name.startswith(("XLA_", "JAX_"))}


FLAGS = _flags()


def pytest_collection_finish():
    """Raises if a module that was collected changed what all tests would be compiled with."""
    assert _flags() == FLAGS, f"collecting changed the flags from {FLAGS} to {_flags()}"


def pytest_terminal_summary(terminalreporter):
    """Prints a line of figures for each campaign that was run."""
    for line in campaign_figures.lines(terminalreporter):
        terminalreporter.write_line(line)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)
