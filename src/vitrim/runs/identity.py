"""How two descriptions of what a run is made from differ, as `run.json` has them."""

from collections.abc import Iterator, Mapping
from typing import Any


def with_missing(old: Any, before: Mapping[str, Any]) -> Any:
    """`old`, with the values in `before` where it lacks a key."""
    if not isinstance(old, dict):
        return old
    for key, value in before.items():
        if key not in old:
            old[key] = value
        elif isinstance(value, Mapping):
            with_missing(old[key], value)
    return old


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys with dots that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
