"""Ranges of the numbers in a config."""

import math


def check(config: object, name: str, *fields: str, least: float, below: float = math.inf) -> None:
    """Looks whether numbers are in their range; None is in any.

    Args:
        config: whose fields they are.
        name: what gin calls it.
        fields: their names.
        least: the smallest that may be.
        below: what they must be less than.

    Raises:
        ValueError: one is not; names it as gin does.
    """
    for field in fields:
        value = getattr(config, field)
        if value is not None and not least <= value < below:
            limit = "" if math.isinf(below) else f" and less than {below}"
            raise ValueError(f"{name}.{field} = {value} must be at least {least}{limit}")
