"""What differs between two configs, given as their texts, see `config.Settings`.

The defaults of parameters that a text lacks are read from gin's table `_REGISTRY`.
"""

import ast
import dataclasses

import gin
from gin import config_parser

from bidi import config_text


@dataclasses.dataclass(frozen=True)
class Difference:
    """One value that differs between two configurations: gin literals, None where it is not set."""

    name: str
    old: str | None
    new: str | None


def differences(old_text: str, new_text: str) -> list[Difference]:
    """What changed from one text to another, sorted by name, macros replaced.

    The configs named in the texts need not exist any more. A parameter that the old text lacks is
    newer than it: its default is taken, which does what was done before. Either may lack one whose
    default is a config, which is left out of texts.
    """
    old, new = values_of(old_text), values_of(new_text)
    old = {name: default for name in new if (default := _default(name))} | old
    new = {name: default for name in old if (default := _default_config(name))} | new
    return [
        Difference(name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if not _same(old.get(name), new.get(name))
    ]


def _same(old: str | None, new: str | None) -> bool:
    """Whether two literals have one value: 0 and 0.0 have."""
    if old is None or new is None or old == new:
        return old == new
    try:
        values = [ast.literal_eval(text) for text in (old, new)]
    except (SyntaxError, ValueError):  # a reference
        return False
    return values[0] == values[1] and not any(isinstance(value, bool) for value in values)


def values_of(text: str) -> dict[str, str]:
    """Name -> literal for every parameter in a config text, macros replaced by values."""
    values, macros = {}, {}
    for statement in config_text.statements(text, lambda line: f"config, line {line}"):
        if isinstance(statement, config_parser.BindingStatement):
            name = (f"{statement.scope}/" if statement.scope else "") + statement.selector
            if statement.arg_name:
                values[f"{name}.{statement.arg_name}"] = statement.value
            else:
                macros[name] = statement.value
    return {name: repr(config_text.expand(value, macros)) for name, value in values.items()}


def _default(name: str) -> str | None:
    """The literal of a parameter's default, if it has one."""
    field = _field(name)
    if field is None or field.default in (dataclasses.MISSING, gin.REQUIRED):
        return _default_config(name)
    return repr(field.default)


def _default_config(name: str) -> str | None:
    """The reference to a parameter's default, if that is a config."""
    field = _field(name)
    if field is None or field.default_factory is dataclasses.MISSING:
        return None
    for selector, configurable in gin.config._REGISTRY.items():
        if configurable.wrapped is field.default_factory:
            return f"@{selector.rpartition('.')[2]}()"
    return None


def _field(name: str) -> dataclasses.Field | None:
    selector, _, parameter = name.rpartition(".")
    configurable = gin.config._REGISTRY.get_match(selector.rpartition("/")[2])
    if configurable is None or not dataclasses.is_dataclass(configurable.wrapped):
        return None
    fields = {field.name: field for field in dataclasses.fields(configurable.wrapped)}
    return fields.get(parameter)
