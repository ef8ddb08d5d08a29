"""Settings of all tests."""

import os
import signal

from hypothesis import HealthCheck, settings

from tests import campaign_figures

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
