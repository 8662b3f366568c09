"""Finds every fault of a composed config before anything is built."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from openqwen2vl.formats.errors import ConfigError, UserError

Rule = Callable[[DictConfig], None]
# Words that Hydra itself reads from a node with a `_target_`.
HYDRA_WORDS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})


@dataclass(frozen=True)
class Schema:
    """What a command's config may hold.

    Attributes:
        keys: names at the top level.
        types: of plain values at the top level: `no` for a bool is a text, and a text is true.
        groups: plain groups (without `_target_`) and the dataclass whose fields they must have;
            `Kind | None` for one that may be null.
        parts: groups that cannot be null, since something is built of each.
        rules: checks between parts; each raises a UserError that says both numbers.
    """

    keys: frozenset[str]
    types: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[str] = ()
    rules: Sequence[Rule] = ()


def check(config: DictConfig, schema: Schema) -> None:
    """Raise one error that lists all faults of a config.

    Looked for: keys that must be given, unknown keys (with the nearest known one), `_target_`s
    that do not exist or do not take or lack an argument, values of another type than declared,
    values that interpolation cannot resolve, and the schema's rules.

    Raises:
        ConfigError: at least one fault.
    """
    faults = list(_unresolved(config)) or [
        *_unknown(config, schema.keys, "", "the config"),
        *_missing(config),
        *_empty(config, schema.parts),
        *_targets(config),
        *_typed(config, schema.types),
        *_typed(config, schema.groups),
    ]
    if not faults:
        # Rules read values, which only make sense once every value is there.
        faults = list(_rules(config, schema.rules))
    if faults:
        title = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError("\n  ".join([f"{title} in the config:", *faults]))


def nearest(word: str, known: Iterable[str]) -> str:
    """Give a hint such as `; did you mean 'steps'?`, or nothing when no known word is near."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unknown(node: DictConfig, known: Iterable[str], path: str, owner: str) -> list[str]:
    names = [str(key) for key in node if str(key) not in set(known)]
    return [f"{path}{name}: {owner} has no such key{nearest(name, known)}" for name in names]


def _entries(node: Any, path: str = "") -> Iterable[tuple[str, Any, Any]]:
    """Yield path, container and key of everything in a config, at any depth, read or not."""
    for key in node if OmegaConf.is_dict(node) else range(len(node)):
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
        yield path + step, node, key
        child = node._get_node(key)
        if OmegaConf.is_config(child):
            yield from _entries(child, path + step)


def _unresolved(config: DictConfig) -> Iterable[str]:
    """Yield interpolations that lead nowhere; one to a key yet to be given is no such fault."""
    for path, parent, key in _entries(config):
        if OmegaConf.is_interpolation(parent, key):
            try:
                parent[key]
            except InterpolationToMissingValueError:
                continue
            except OmegaConfBaseException as error:
                yield f"{path}: {str(error).splitlines()[0]}"


def _missing(config: DictConfig) -> list[str]:
    found = [path for path, parent, key in _entries(config) if OmegaConf.is_missing(parent, key)]
    return [f"{path}: must be given" for path in sorted(found)]


def _empty(config: DictConfig, parts: Sequence[str]) -> list[str]:
    given = [name for name in parts if name in config and not OmegaConf.is_missing(config, name)]
    found = [name for name in given if config[name] is None]
    return [f"{name} is null; leave it away or choose one of conf/{name}" for name in found]


def _walk(config: DictConfig) -> Iterable[tuple[str, DictConfig]]:
    """Yield every node that has a `_target_`, at any depth."""
    for path, parent, key in _entries(config):
        node = parent._get_node(key)
        if OmegaConf.is_dict(node) and "_target_" in node:
            yield path, node


def _targets(config: DictConfig) -> Iterable[str]:
    for path, node in _walk(config):
        name = node._target_
        try:
            target = find_target(name)
        except (ImportError, AttributeError, ValueError) as error:
            yield f"{path}._target_: there is no {name!r} ({error})"
            continue
        yield from _arguments(path, name, target, node)


def find_target(name: str) -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has nothing of that name that can be called.
        ValueError: the name has no module.
    """
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if not callable(found):
        raise AttributeError(f"{name} cannot be called")
    return found  # type: ignore[no-any-return]


def _arguments(path: str, name: str, target: Callable[..., Any], node: DictConfig) -> Iterable[str]:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        # Some functions written in C do not tell what they take.
        return
    given = {str(key) for key in node} - HYDRA_WORDS
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in sorted(given - set(parameters)):
            yield f"{path}.{key}: {name} takes no such key{nearest(key, parameters)}"
    hints = _hints(target)
    for key in sorted(given & set(parameters) & set(hints)):
        yield from _value(f"{path}.{key}", node, key, hints[key])
    if node.get("_partial_", False):
        return
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and key not in given:
            yield f"{path}: {name} needs {key!r}"


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Give the declared types of the arguments; none where they cannot be told."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        # Names that a library imports for its type checker only.
        return {}


def _typed(config: DictConfig, kinds: Mapping[str, Any]) -> Iterable[str]:
    for name, kind in kinds.items():
        if name in config:
            yield from _value(name, config, name, kind)


def _value(path: str, parent: Any, key: Any, hint: Any) -> Iterable[str]:
    """Compare a value with the type that its owner declares, dataclasses in it included."""
    try:
        value = parent[key]
    except (MissingMandatoryValue, InterpolationToMissingValueError):
        return
    inner = get_args(hint)
    if get_origin(hint) in (Union, UnionType) and NoneType in inner and value is not None:
        rest = [choice for choice in inner if choice is not NoneType]
        if len(rest) == 1 and (is_dataclass(rest[0]) or get_origin(rest[0]) is not None):
            hint, inner = rest[0], get_args(rest[0])
    if is_dataclass(hint):
        yield from _fields(path, value, hint)
    elif get_origin(hint) in (list, tuple, Sequence):
        if not OmegaConf.is_list(value):
            yield f"{path} is {value!r}; expected a list, [A,B]"
            return
        for index in range(len(value)):
            yield from _value(f"{path}[{index}]", value, index, inner[0])
    elif get_origin(hint) is Mapping:
        if not OmegaConf.is_dict(value):
            yield f"{path} is {value!r}; expected names with values, {{NAME: VALUE}}"
            return
        for name in value:
            yield from _value(f"{path}.{name}", value, name, inner[1])
    elif not _fits(value, hint):
        yield f"{path} is {value!r}; expected {_said(hint)}"


def _fields(path: str, node: Any, kind: Any) -> Iterable[str]:
    known = [item.name for item in fields(kind)]
    if not OmegaConf.is_dict(node):
        yield f"{path} is {node!r}; expected the keys {', '.join(known)}"
        return
    yield from _unknown(node, known, f"{path}.", path)
    hints = get_type_hints(kind)
    for item in fields(kind):
        if item.name in node:
            yield from _value(f"{path}.{item.name}", node, item.name, hints[item.name])
        elif item.default is MISSING and item.default_factory is MISSING:
            yield f"{path} needs {item.name!r}"


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a plain value is of a type; types that YAML does not know are not judged."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        numbers = (int,) if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


def _said(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_said(choice) for choice in get_args(hint))
    words = {int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
    return {**words, bool: "true or false"}.get(hint, str(hint))


def _rules(config: DictConfig, rules: Sequence[Rule]) -> Iterable[str]:
    for rule in rules:
        try:
            rule(config)
        except UserError as error:
            yield str(error)
