"""Gin made strict: every value is checked before anything is built from it.

Gin itself accepts a wrong type, an undefined macro and a binding that nothing uses in silence. Here
gin's own parser reads the files, every binding is checked against the dataclass that it configures,
and the program's `build` makes the whole tree of configs once. What scopes, macros, includes and
references mean is gin's affair and unchanged.

A config is a frozen dataclass: its annotations are its types, `gin.REQUIRED` marks what has no
default.

    @gin.configurable("Search")
    @dataclasses.dataclass(frozen=True)
    class SearchConfig:
        beam_size: int = 4

Gin has no public way to list what was registered or used, so this module and `config_text` read its
tables `_REGISTRY`, `_OPERATIVE_CONFIG` and `_IMPORTS`.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import gin
from absl import flags

from bidi import config_text, config_types
from bidi.config_text import MACRO, Binding, Bindings, Macro, Reference
from bidi.errors import ConfigError, suggestion

T = TypeVar("T")
_FLAG = "--gin."
# Flags defined here are shown by the --help of the verb.
flags.disclaim_key_flags()

__all__ = [
    "Settings",
    "define_flags",
    "gin_arguments",
    "load",
]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values that a `load` used, defaults too.

    Attributes:
      text: gin text that loads to the same text. A default that no gin literal can express (another
        config, infinity) is left out.
      description: a line each, with file and line, flag, or `default`.
    """

    text: str
    description: str


def define_flags() -> None:
    """Defines the absl flags --gin_file and --print_config. Calling it again changes nothing."""
    if "gin_file" in flags.FLAGS:
        return
    flags.DEFINE_multi_string(
        "gin_file", [], "A gin file; given several times, later files override earlier ones."
    )
    flags.DEFINE_bool(
        "print_config", False, "Print every value with the place that it comes from, then stop."
    )


def gin_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--gin.NAME=value` and `--gin.NAME value` out of a command line.

    Args:
      argv: the command line, program name included; nothing after a bare `--` is looked at.

    Returns:
      The rest of the command line, and bindings 'NAME = value' for `load`. A value that is no gin
      literal but a bare word or path (l2r, data/x) becomes a string, so that nothing needs quotes
      for the shell.

    Raises:
      ConfigError: the name or the value is missing.
    """
    rest, bindings, arguments = [], [], iter(argv)
    for argument in arguments:
        if argument == "--":
            rest += [argument, *arguments]
        elif argument.startswith(_FLAG):
            flag, equals, value = argument.partition("=")
            if not equals:
                value = next(arguments, "")
            name, value = flag.removeprefix(_FLAG).strip(), value.strip()
            if not name or not value or (not equals and value.startswith("--")):
                raise ConfigError(
                    f"{argument}: write {_FLAG}NAME=value, for an empty string {_FLAG}NAME=\"''\""
                )
            # What starts like a literal is left to the parser, which can say what is wrong with it.
            literal = value[0] in "'\"@%([{" or config_text.is_literal(value)
            bindings.append(f"{name} = {value if literal else repr(value)}")
        else:
            rest.append(argument)
    return rest, bindings


def load(
    build: Callable[[], T],
    files: Sequence[str | os.PathLike[str]],
    bindings: Sequence[str],
    texts: Mapping[str, str] | None = None,
) -> tuple[T, Settings]:
    """Reads gin files and bindings, checks all of it, and returns what `build` makes of it.

    Gin's global tables are empty again afterwards: the values live in the result alone, and a
    config made later by hand (in a test, by `dataclasses.replace`) sees defaults only.

    Args:
      build: makes the tree of configs by calling their classes without the arguments that gin is to
        fill in.
      files: gin files, also in a bucket; later ones override earlier ones.
      bindings: 'NAME = value' as `gin_arguments` gives them; they override the files.
      texts: gin text by what messages call it; the files override it.

    Returns:
      The result of `build()`, and the values that it was made with.

    Raises:
      ConfigError: a file that cannot be read or parsed; an unknown config, parameter or macro; a
        value of the wrong type; a required value that is missing; a binding or a macro that nothing
        used; a ValueError by which a config refused its values.
    """
    gin.clear_config()
    try:
        found: Bindings = {}
        for name, text in (texts or {}).items():
            _read_text(name, text, found)
        for file in files:
            config_text.read_file(file, found)
        for text in bindings:
            _read_flag(text, found)
        _check_values(found)
        for binding in found.values():
            key = (binding.scope, binding.selector, binding.parameter)
            gin.bind_parameter(key, _to_gin(binding.value))
        result = _build(build, found)
        _check_used(found)
        _record_container_defaults()
        text = gin.operative_config_str(max_line_length=100)
        return result, Settings(text, _description(found))
    finally:
        gin.clear_config()


def _read_text(name: str, text: str, found: Bindings) -> None:
    config_text.read(text, lambda line: f"{name}:{line}", found)


def _read_flag(text: str, found: Bindings) -> None:
    flag = _FLAG + text.partition("=")[0].strip()
    config_text.read(text, lambda line: flag, found)


def _macros(found: Bindings) -> dict[str, Any]:
    return {b.scope: b.value for b in found.values() if b.selector == MACRO}


def _check_values(found: Bindings) -> None:
    macros, errors = _macros(found), []
    for binding in found.values():
        try:
            value = config_text.expand(binding.value, macros)
        except ConfigError as error:
            errors.append(f"{binding}: {error}")
            continue
        if binding.selector == MACRO:  # Its value is checked where the macro is used.
            continue
        annotation = config_text.parameters(config_text.wrapped(binding.selector))
        if value is gin.REQUIRED:
            flag = f"{_FLAG}{_source(binding, found)[-1].name}=..."
            errors.append(f"{binding}: needs a value: set it in a later file or by {flag}")
            continue
        value = config_text.map_leaves(value, _stand_in)
        wrong = config_types.mismatch(value, annotation[binding.parameter])
        if wrong:
            errors.append(f"{binding}: {wrong}")
    if errors:
        raise ConfigError("\n".join(errors))


def _stand_in(value: Any) -> Any:
    """What a reference will give, for the type check: the class, or a blank instance of it."""
    if not isinstance(value, Reference):
        return value
    config = config_text.wrapped(value.name)
    return object.__new__(config) if value.evaluate else config


def _to_gin(value: Any) -> Any:
    delegate = gin.config.ParserDelegate()

    def leaf(value: Any) -> Any:
        if isinstance(value, Reference):
            return delegate.configurable_reference(value.name, value.evaluate)
        return delegate.macro(value.name) if isinstance(value, Macro) else value

    return config_text.map_leaves(value, leaf)


def _build(build: Callable[[], T], found: Bindings) -> T:
    try:
        return build()
    except (RuntimeError, ValueError) as error:
        # Gin appends the chain of calls to the message of whatever is raised inside a config.
        message, _, calls = str(error).partition("\n  In call to configurable ")
        missing = re.match(
            r"Required bindings for `(.+)` not provided in config: \[(.+)\]", message
        )
        if missing:
            names = [f"{missing[1]}.{name}" for name in re.findall(r"\w+", missing[2])]
            raise ConfigError(
                f"no value for {', '.join(names)}: "
                f"write {names[0]} = ... in a gin file or {_FLAG}{names[0]}=... after the command"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        name = calls.split("'")[1] if calls else ""
        registry = gin.config._REGISTRY
        own = [str(b) for b in found.values() if registry[b.selector].name == name]
        raise ConfigError("\n  ".join([f"{name}: {message}" if name else message, *own])) from error


def _check_used(found: Bindings) -> None:
    errors = [f"{b}: nothing uses it: {why}" for b in found.values() if (why := _unused(b, found))]
    if errors:
        raise ConfigError("\n".join(errors))


def _unused(binding: Binding, found: Bindings) -> str | None:
    used = gin.config._OPERATIVE_CONFIG
    scopes = [scope for scope, selector in used if selector == binding.selector]
    if binding.selector == MACRO:
        known = suggestion(binding.scope, scopes)
        return None if binding.scope in scopes else f"no value is %{binding.name}{known}"
    name = gin.config._REGISTRY.minimal_selector(binding.selector)
    if not scopes:
        return f"no {name} is built with this configuration"
    visible = [s for s in scopes if not binding.scope or f"{s}/".startswith(f"{binding.scope}/")]
    if not visible:
        built = ", ".join(f"{s}/{name}" if s else name for s in sorted(scopes))
        return f"only {built} is built"
    if not any(binding.parameter in used[scope, binding.selector] for scope in visible):
        return "the program sets this value itself"
    nearest = [_nearest(scope, binding.selector, binding.parameter, found) for scope in visible]
    if binding not in nearest:
        return f"{' and '.join(sorted({b.name for b in nearest if b}))} takes its place"
    return None


def _nearest(scope: str, selector: str, parameter: str, found: Bindings) -> Binding | None:
    """The binding that a parameter takes its value from there, None for its default."""
    parts = scope.split("/") if scope else []
    outer = ("/".join(parts[:n]) for n in range(len(parts), -1, -1))
    keys = ((s, selector, parameter) for s in outer)
    return next((found[key] for key in keys if key in found), None)


def _record_container_defaults() -> None:
    """Adds the lists and dicts that are defaults to gin's operative config.

    A dataclass makes them by a factory, whose result gin does not see.
    """
    for (_, selector), used in gin.config._OPERATIVE_CONFIG.items():
        if not _is_config(selector):
            continue
        config = config_text.wrapped(selector)
        annotations = config_text.parameters(config)
        for field in dataclasses.fields(config):
            factory = field.default_factory
            is_container = typing.get_origin(annotations.get(field.name)) in (dict, list)
            if is_container and field.name not in used and factory is not dataclasses.MISSING:
                used[field.name] = factory()


def _is_config(selector: str) -> bool:
    return dataclasses.is_dataclass(gin.config._REGISTRY[selector].wrapped)


def _description(found: Bindings) -> str:
    macros, rows = _macros(found), []
    for (scope, selector), used in gin.config._OPERATIVE_CONFIG.items():
        if not _is_config(selector):
            continue
        name = gin.config._REGISTRY.minimal_selector(selector)
        for parameter, value in used.items():
            binding = _nearest(scope, selector, parameter, found)
            origin = "default"
            if binding:
                value = config_text.expand(binding.value, macros)
                origin = ", ".join(f"{b.name} at {b.origin}" for b in _source(binding, found)[1:])
                origin = f"{binding.origin}{', where ' if origin else ''}{origin}"
            rows.append((f"{scope}/{name}" if scope else name, parameter, value, origin))
    rows.sort(key=lambda row: row[:2])
    texts = [f"{name}.{parameter} = {value!r}" for name, parameter, value, _ in rows]
    width = min(60, max(map(len, texts), default=0))
    return "\n".join(f"{t:<{width}}  # {row[-1]}" for t, row in zip(texts, rows, strict=True))


def _source(binding: Binding, found: Bindings) -> list[Binding]:
    """The binding and, if it is a macro, the chain of bindings that it leads to."""
    if isinstance(binding.value, Macro) and (binding.value.name, MACRO, "value") in found:
        return [binding, *_source(found[binding.value.name, MACRO, "value"], found)]
    return [binding]
