"""How many runs of a sweep go into one call: as many as the memory holds."""

from collections.abc import Callable

from hgrad_jax.show.text_table import in_bytes


def chunk_size(
    bytes_of: Callable[[int], int], *, num_runs: int, num_devices: int, memory: float | None
) -> int:
    """Returns how many runs to compute in one call: all, or equal parts of them that fit.

    Bytes are taken to grow in proportion beyond a constant, as they nearly do: a size is guessed
    from two that were measured, and measured in turn. Each measurement is a compilation; two or
    three are usual.

    Args:
      bytes_of: the bytes that a call with that many runs takes on each device.
      num_runs: how many there are.
      num_devices: what a size must be a multiple of.
      memory: bytes a device; None for as many as it takes.

    Returns:
      A multiple of `num_devices`, at most `num_runs` rounded up to one.

    Raises:
      ValueError: not even one run a device fits.

    >>> chunk_size(lambda n: 100 + 10 * n, num_runs=50, num_devices=1, memory=350)
    25
    """
    most = -(-num_runs // num_devices)
    if memory is None:
        return most * num_devices
    high, low = (most, bytes_of(most * num_devices)), (0, 0)
    if high[1] <= memory:
        return most * num_devices
    if most > 1:
        low = (1, bytes_of(num_devices))
    least = low[1] if most > 1 else high[1]
    if least > memory:
        raise ValueError(
            f"memory is {in_bytes(memory)}, but one run takes {in_bytes(least)} on a device, "
            "besides its inputs: give more, or make the run's memory smaller, by Checkpointed() or "
            "Reversible() if it is differentiated."
        )
    while high[0] - low[0] > 1:
        share = (memory - low[1]) / (high[1] - low[1])
        guess = low[0] + int(share * (high[0] - low[0]))
        guess = _even(most, min(max(guess, low[0] + 1), high[0] - 1))
        if guess <= low[0]:
            break
        measured = (guess, bytes_of(guess * num_devices))
        if measured[1] <= memory:
            return guess * num_devices
        high = measured
    return low[0] * num_devices


def _even(whole: int, part: int) -> int:
    """Returns the size of equal parts of the whole, as few as with parts of that size."""
    num_parts = -(-whole // part)
    return -(-whole // num_parts)
