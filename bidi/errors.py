"""What the user can mend: any other error is a fault of ours, and shows where it was."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that was given cannot be worked with; the message says what, and what to do."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message says where the fault is and what to do."""


class DataError(UserError):
    """Data that cannot be used as it is; the message says where and what to do."""


class PathError(UserError):
    """A path is of a kind that cannot be worked with here; the message says which can."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` is most likely to mean, if any is near."""
    by_folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, else those there are."""
    names = sorted(names)
    if near := nearest(name, names):
        return f". Did you mean '{near}'?"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f". There are: {', '.join(names[:20]) or 'none'}{more}"
