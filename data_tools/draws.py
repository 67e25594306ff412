"""Random numbers that are a hash of what they are drawn for."""

from __future__ import annotations


def draw(seed: int, purpose: str, *columns: str) -> str:
    """SQL for a uniform number in [0, 1) from the seed and the values of these text columns.

    Equal values draw equal numbers in any order, shard and process; another `purpose` draws
    independently. The last column may hold any text, those before it no control characters.
    """
    values = ", ".join((f"'{seed}'", f"'{purpose}'", *columns))
    # md5 is not there for secrecy: unlike duckdb's own hash it is the same in every version
    bits = f"md5_number_lower(concat_ws(chr(31), {values})) >> 11"  # as many as a double holds
    return f"(({bits})::DOUBLE / {2**53})"


def share(fraction: float, count: int) -> int:
    """The number of samples that are this fraction of `count`, halves rounded up."""
    return int(fraction * count + 0.5)
