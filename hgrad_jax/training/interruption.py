"""Ctrl-C and SIGTERM: the step being computed is finished and kept, and a sentence says where.

A signal that comes while a step is computed and written waits for its end: the computation could
not be left before anyway. One that comes at another moment, or a second one, ends the call.
"""

import contextlib
import dataclasses
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a call; the message says what is kept, and how to go on.

    A KeyboardInterrupt, so that `except Exception` lets it pass.

    Attributes:
      signum: the signal, `signal.SIGINT` or `signal.SIGTERM`.
    """

    def __init__(self, message: str = "", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = signum

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.signum)


@dataclasses.dataclass
class _Signals:
    """What the handler, which belongs to the process, knows.

    Attributes:
      is_waiting: whether a signal is to wait for the end of a step.
      came: the one that waits.
    """

    is_waiting: bool = False
    came: int | None = None


_SIGNALS = _Signals()


@contextlib.contextmanager
def interruption(sentence: Callable[[], str]) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM raise an `Interrupted` while the context lasts.

    Contexts may be nested; the innermost gives the sentence. Handlers are set in the main thread
    of a program of one process alone, in place of the system's and Python's own, and taken back;
    those of the program stay.

    Args:
      sentence: what is kept and how to go on, asked for after the signal.

    Raises:
      Interrupted: in place of any KeyboardInterrupt.
    """
    try:
        with _handled():
            yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) and str(error):
            raise
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(sentence(), signum) from error


def interruptible(sentence: Callable[..., str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator: the function's calls are in an `interruption`.

    Args:
      sentence: called with the call's keyword arguments.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with interruption(lambda: sentence(**kwargs)):
                return function(*args, **kwargs)

        return call

    return decorated


@contextlib.contextmanager
def a_step() -> Iterator[Callable[[], bool]]:
    """Lets a first signal wait for the end of the context, where it is raised.

    Yields:
      A function that returns whether one waits, so that the step is the last.

    Raises:
      Interrupted: at the end of the context; at once for a second signal.
    """
    if not _is_ours(signal.SIGINT) and not _is_ours(signal.SIGTERM):
        yield lambda: False
        return
    _SIGNALS.is_waiting = True
    try:
        yield lambda: _SIGNALS.came is not None
    finally:
        _SIGNALS.is_waiting, came = False, _SIGNALS.came
        _SIGNALS.came = None
    if came is not None:
        raise Interrupted(signum=came)


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    before = {}
    try:
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                    before[signum] = signal.signal(signum, _handler)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _handler(signum: int, frame: Any) -> None:
    if _SIGNALS.is_waiting and _SIGNALS.came is None:
        _SIGNALS.came = signum
        return
    raise Interrupted(signum=signum)


def _is_ours(signum: int) -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signum) is _handler
