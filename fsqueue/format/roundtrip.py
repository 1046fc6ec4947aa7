"""Find what JSON would change in a ref: tuples, keys and numbers, and where they are."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from inspect import getattr_static
from typing import Any, cast, get_args, get_type_hints

import msgspec


class ChangedError(Exception):
    def __init__(self, path: list[str | int], problem: str) -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem


def compare(ref: Any, back: Any, path: list[str | int], tuples: list[list[str | int]]) -> None:
    """Note the tuples that came back as lists; refuse whatever else came back changed."""
    if type(ref) is tuple and isinstance(back, (list, tuple)):
        if isinstance(back, list):
            tuples.append(list(path))
        _compare_items(enumerate(ref), back, path, tuples)
    elif isinstance(ref, list) and isinstance(back, list):
        _compare_items(enumerate(ref), back, path, tuples)
    elif isinstance(ref, dict) and isinstance(back, dict) and ref.keys() == back.keys():
        _compare_items(ref.items(), back, path, tuples)
    elif dataclasses.is_dataclass(ref) and type(ref) is type(back):
        for f in dataclasses.fields(ref):
            compare(getattr(ref, f.name), getattr(back, f.name), [*path, f.name], tuples)
    elif ref != back or isinstance(ref, bool) != isinstance(back, bool):
        raise ChangedError(path, _why_not(ref, back))


def _compare_items(items: Any, back: Any, path: list[str | int], tuples: list[list[str | int]]) -> None:
    for key, value in items:
        compare(value, back[key], [*path, key], tuples)


def _why_not(ref: Any, back: Any) -> str:
    if isinstance(ref, float) and not math.isfinite(ref):
        return f"JSON has no {ref!r}: leave the key out, or use None"
    if isinstance(ref, dict):
        return "JSON object keys are strings: use str keys"
    return f"a {full_name(type(ref))} would come back as {back!r}: convert it before put"


def first_unencodable(value: Any, where: str) -> str:
    """Return the path of the innermost value that the encoder refuses."""
    if isinstance(value, dict):
        below = [(f"{where}[{key!r}]", child) for key, child in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        below = [(f"{where}[{index}]", child) for index, child in enumerate(value)]
    elif dataclasses.is_dataclass(value):
        below = [(f"{where}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    else:
        return where
    for path, child in below:
        try:
            msgspec.json.encode(child)
        except RecursionError:
            return path
        except (TypeError, ValueError):
            return first_unencodable(child, path)
    return where


def restore_tuples(ref: Any, paths: list[list[str | int]]) -> None:
    """Turn the lists at these paths into tuples, innermost first; a path that leads nowhere is skipped."""
    for path in sorted(paths, key=len, reverse=True):
        try:
            holder = ref
            for step in path[:-1]:
                holder = _child(holder, step)
            value = tuple(_child(holder, path[-1]))
            if dataclasses.is_dataclass(holder):
                object.__setattr__(holder, cast(str, path[-1]), value)
            else:
                holder[path[-1]] = value
        except (AttributeError, KeyError, IndexError, TypeError):
            continue


def _child(holder: Any, step: str | int) -> Any:
    return getattr(holder, str(step)) if dataclasses.is_dataclass(holder) else holder[step]


def format_path(ref: Any, path: list[str | int]) -> str:
    """Write a path as Python would: ``<root>.feature_specs['hidden'].target_meta['scale']``."""
    text = "<root>"
    for step in path:
        text += f".{step}" if dataclasses.is_dataclass(ref) else f"[{step!r}]"
        ref = _child(ref, step)
    return text


def full_name(t: type) -> str:
    return f"{t.__module__}.{t.__qualname__}"


def eq_tells_all(t: Any, seen: set[Any]) -> bool:
    """Return whether ``==`` on this type compares every field: the generated method, and no field left out of it."""
    if t in seen:
        return True
    seen.add(t)
    if isinstance(t, type) and dataclasses.is_dataclass(t):
        params = getattr(t, "__dataclass_params__", None)
        if not getattr(params, "eq", False) or not all(f.compare for f in dataclasses.fields(t)):
            return False
        return all(eq_tells_all(hint, seen) for hint in get_type_hints(t).values())
    return all(eq_tells_all(arg, seen) for arg in get_args(t) if not isinstance(arg, (str, int, bytes)))


def equality_of(t: type[Any]) -> Callable[[Any, Any], bool]:
    """Return how to compare objects of a dataclass whose ``==`` tells all.

    Where their fields are what their ``__dict__`` holds, and neither slots nor properties, that is compared at once.
    """
    held_elsewhere = any(hasattr(type(getattr_static(t, f.name, None)), "__set__") for f in dataclasses.fields(t))
    return operator.eq if held_elsewhere else _have_equal_vars


def _have_equal_vars(one: object, other: object) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)
