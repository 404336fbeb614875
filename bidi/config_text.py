"""Gin text as a list of bindings: gin's own parser, every fault with its line, names checked.

References and macros are kept as they were written; nothing here touches gin's tables of values.
"""

import dataclasses
import importlib
import os
import tokenize
import typing
from collections.abc import Callable, Iterator
from typing import Any

import gin
from gin import config_parser

from bidi.errors import ConfigError, PathError, suggestion
from bidi.files import path_of

# The name under which gin keeps a macro: `M = 3` is the parameter `value` of `M/gin.macro`.
MACRO = "gin.macro"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@name` or `@name()` as written, scopes included."""

    name: str
    evaluate: bool

    def __repr__(self) -> str:
        return f"@{self.name}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name` as written."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """A statement `name = value`.

    Attributes:
      name: as written, scopes included.
      scope: the scopes, joined by `/`; a macro's own name.
      selector: the complete name of the config in gin's registry, or `MACRO`.
      parameter: the field of the config, `value` for a macro.
      value: a literal, in which `Reference` and `Macro` may stand.
      origin: `file:line` or the flag.
    """

    name: str
    scope: str
    selector: str
    parameter: str
    value: Any
    origin: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.name} = {self.value!r}"


# (scope, selector, parameter) -> the binding that holds; a later one has replaced an earlier one.
Bindings = dict[tuple[str, str, str], Binding]


def read_file(path: str | os.PathLike[str], bindings: Bindings, including: tuple = ()) -> None:
    """Adds a file's bindings, and those of the files that it includes, to `bindings`.

    Args:
      path: of this machine or in a bucket; an `include` is relative to the current directory, as
        always in gin.
      bindings: changed in place.
      including: the files that are being read, outermost first.

    Raises:
      ConfigError: a file cannot be read or parsed, includes itself, or uses an unknown name.
    """
    name = os.fspath(path)
    if name in including:
        raise ConfigError(f"{name} includes itself: {' -> '.join((*including, name))}")
    try:
        text = path_of(name).read_text(encoding="utf-8-sig")
    except (OSError, PathError, UnicodeDecodeError) as error:
        by = f"included by {including[-1]}" if including else "given by --gin_file"
        raise ConfigError(f"{name} ({by}) cannot be read: {error}") from error
    read(text, lambda line: f"{name}:{line}", bindings, (*including, name))


def read(
    text: str, origin: Callable[[int], str], bindings: Bindings, including: tuple = ()
) -> None:
    """As `read_file`, for gin text; `origin` says for a line of it where it comes from."""
    for statement in statements(text, origin):
        where = origin(statement.location.line_num)
        match statement:
            case config_parser.BindingStatement():
                binding = _binding(statement, where)
                bindings[binding.scope, binding.selector, binding.parameter] = binding
            case config_parser.BlockDeclaration():
                _configurable(statement.selector, where)
            case config_parser.IncludeStatement():
                read_file(statement.filename, bindings, including)
            case config_parser.ImportStatement():
                try:
                    importlib.import_module(statement.module)
                except ImportError as error:
                    raise ConfigError(f"{where}: {statement.format()}: {error}") from error
                gin.config._IMPORTS.add(statement)  # Gin writes it into the operative config.


def statements(text: str, origin: Callable[[int], str]) -> Iterator[Any]:
    """The statements of gin text, of the types of `gin.config_parser`."""
    try:
        yield from config_parser.ConfigParser(text, _Verbatim())
    except SyntaxError as error:
        fault = error.msg.splitlines()[-1].strip()
        if (
            "parse token" in fault
        ):  # A bare word, for which gin shows Python's own puzzling message.
            fault += ": a string needs quotes."
        found = (error.text or "").strip()
        raise ConfigError(f"{origin(error.lineno or 1)}: {fault} In: {found}") from error
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ConfigError(f"{origin(line)}: {message}: close the bracket or quote") from error


def is_literal(text: str) -> bool:
    """Whether gin's parser takes all of `text` as one value."""
    try:
        return len(list(config_parser.ConfigParser(f"value = {text}", _Verbatim()))) == 1
    except (SyntaxError, tokenize.TokenError):
        return False


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Applies `function` to what is in nested lists, tuples and dicts."""
    if isinstance(value, list | tuple):
        return type(value)(map_leaves(item, function) for item in value)
    if isinstance(value, dict):
        items = value.items()
        return {map_leaves(k, function): map_leaves(item, function) for k, item in items}
    return function(value)


def expand(value: Any, macros: dict[str, Any], inside: tuple[str, ...] = ()) -> Any:
    """Replaces macros by their values and `%gin.REQUIRED` by `gin.REQUIRED`.

    Raises:
      ConfigError: a macro that is not in `macros`, or one that is defined by itself.
    """

    def leaf(value: Any) -> Any:
        if not isinstance(value, Macro):
            return value
        if value.name == "gin.REQUIRED":
            return gin.REQUIRED
        if value.name not in macros:
            raise ConfigError(f"no macro {value!r} is defined" + suggestion(value.name, macros))
        if value.name in inside:
            raise ConfigError(f"the macro {value!r} is defined by itself")
        return expand(macros[value.name], macros, (*inside, value.name))

    return map_leaves(value, leaf)


def wrapped(name: str) -> Any:
    """The dataclass that a reference or a complete selector names."""
    return _configurable(name.rpartition("/")[2], name).wrapped


def parameters(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that gin can set, with their annotations."""
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if field.init}


class _Verbatim(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def _binding(statement: Any, where: str) -> Binding:
    def check_reference(leaf: Any) -> Any:
        if isinstance(leaf, Reference):
            _configurable(leaf.name.rpartition("/")[2], where)
        return leaf

    map_leaves(statement.value, check_reference)
    name = (f"{statement.scope}/" if statement.scope else "") + statement.selector
    if not statement.arg_name:
        return Binding(name, name, MACRO, "value", statement.value, where)
    configurable = _configurable(statement.selector, where)
    known = parameters(configurable.wrapped)
    if statement.arg_name not in known:
        raise ConfigError(
            f"{where}: {statement.selector} has no parameter '{statement.arg_name}'"
            + suggestion(statement.arg_name, known)
        )
    name = f"{name}.{statement.arg_name}"
    return Binding(
        name, statement.scope, configurable.selector, statement.arg_name, statement.value, where
    )


def _configurable(selector: str, where: str) -> Any:
    """The entry of gin's registry; only dataclasses count, as only they say their types."""
    registry = gin.config._REGISTRY
    matches = [
        entry
        for entry in registry.get_all_matches(selector)
        if dataclasses.is_dataclass(entry.wrapped)
    ]
    if len(matches) > 1:
        full = ", ".join(sorted(entry.selector for entry in matches))
        raise ConfigError(f"{where}: '{selector}' may be any of {full}: write one of these")
    if not matches:
        names = [
            registry.minimal_selector(name)
            for name, entry in registry.items()
            if dataclasses.is_dataclass(entry.wrapped)
        ]
        raise ConfigError(f"{where}: no config is named '{selector}'" + suggestion(selector, names))
    return matches[0]
