"""Whether a value fits an annotation, and if not, what to write instead."""

import contextlib
import typing
from collections.abc import Iterator
from typing import Any

import typeguard

from bidi.errors import nearest


def mismatch(value: Any, annotation: Any) -> str | None:
    """Says why `value` does not fit `annotation`, or None if it does.

    Typeguard decides, for every item of a container. An int passes for a float, but unlike in
    Python a bool passes for neither.

    Args:
      value: a value as gin's parser made it, references replaced by (blank) instances.
      annotation: a resolved type annotation.
    """
    with _strict_numbers():
        try:
            typeguard.check_type(
                value,
                annotation,
                collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
            )
        except typeguard.TypeCheckError as error:
            reason = str(error).splitlines()[0].rstrip(":")
        else:
            return None
    named = isinstance(annotation, type) and not typing.get_args(annotation)
    wanted = annotation.__name__ if named else str(annotation).replace("typing.", "")
    return f"must be {wanted}{_hint(value, annotation)} ({reason})"


def _hint(value: Any, annotation: Any) -> str:
    """What to write instead, for the mistakes that gin's syntax invites."""
    arms = _arms(annotation)
    origins = [typing.get_origin(arm) or arm for arm in arms]
    literals = [arm for arm in arms if typing.get_origin(arm) is typing.Literal]
    words = [w for arm in literals for w in typing.get_args(arm) if isinstance(w, str)]
    if isinstance(value, str) and words:
        near = nearest(value, words)
        return f". Did you mean '{near}'?" if near else ""
    if isinstance(value, type) and value in origins:
        return ": write () after the reference"
    if isinstance(value, float) and value.is_integer() and int in origins:
        return f": write {int(value)}"
    if tuple in origins and not isinstance(value, tuple):
        return f": write {tuple(value) if isinstance(value, list) else (value,)!r}"
    if list in origins and not isinstance(value, list):
        return f": write {list(value) if isinstance(value, tuple) else [value]!r}"
    if isinstance(value, int | float) and str in origins:
        return f": write '{value}', on a command line \"'{value}'\""
    return ""


def _arms(annotation: Any) -> list[Any]:
    if isinstance(annotation, type(int | str)) or typing.get_origin(annotation) is typing.Union:
        return [leaf for arm in typing.get_args(annotation) for leaf in _arms(arm)]
    return [annotation]


@contextlib.contextmanager
def _strict_numbers() -> Iterator[None]:
    def check(value: Any, origin: Any, args: Any, memo: Any) -> None:
        del args, memo  # Numbers have no type arguments and no forward references.
        wanted = (int,) if origin is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise typeguard.TypeCheckError(f"is not an instance of {origin.__name__}")

    def lookup(origin: Any, args: Any, extras: Any) -> Any:
        del args, extras
        return check if origin in (int, float) else None

    typeguard.checker_lookup_functions.insert(0, lookup)
    try:
        yield
    finally:
        typeguard.checker_lookup_functions.remove(lookup)
