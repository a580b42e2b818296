"""Changing a config from outside: `--set key=value` and YAML files, typed by the fields."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from configs.checks import alternatives, typed
from configs.errors import ConfigError, did_you_mean, shown
from configs.model_configs import get_config
from configs.schema import RunConfig
from configs.section import Section, field_types, is_section

_NULLS = ("null", "none", "~")


def dotted_fields(section: type[Section] = RunConfig) -> dict[str, Any]:
    """Return the type of every value that can be set, by its dotted key."""
    found: dict[str, Any] = {}
    for name, hint in field_types(section).items():
        found.update(dotted_fields(hint) if is_section(hint) else {section.key(name): hint})
    return found


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Return {dotted key: value} for texts like "optim.lr_projector=2e-4".

    Numbers, true/false and lists ("[8, 16]" or "8,16") are read by the field's type; a text is
    taken as it stands; "null", "none" and "~" mean null where the field allows it.

    Raises:
        ConfigError: no "=", an unknown key, or a value of the wrong type.
    """
    known, values = dotted_fields(), dict[str, Any]()
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ConfigError(f"--set {assignment!r}: must be key=value")
        hint = _hint(key, known)
        is_null = text.lower() in _NULLS and type(None) in alternatives(hint)
        values[key] = None if is_null else typed(key, _from_text(_split(text, hint), hint), hint)
    return values


def load_yaml(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the config's name under `base` (or None) and {dotted key: value} for the rest.

    Raises:
        ConfigError: not readable, not YAML, not a mapping, an unknown key, or a wrong type.
    """
    from configs.yaml_text import read_mapping  # lazy, so that this module needs only the stdlib

    content = read_mapping(path)
    base = content.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"base = {shown(base)}: must be the name of a config")
    known, values = dotted_fields(), dict[str, Any]()
    for key, value in flatten(content, "", known):
        hint = _hint(key, known)
        values[key] = typed(key, _from_text(value, hint), hint)
    return base, values


def apply_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return `config` with the dotted keys replaced, all at once.

    Raises:
        ConfigError: unknown key, wrong type, or the values do not go together.
    """
    return _with_values(config.to_dict(), values)


def apply_overrides(config: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """Return `config` with every "key=value" applied; see parse_assignments."""
    return apply_values(config, parse_assignments(assignments))


def resolve(
    name: str | None, file: Path | None = None, assignments: Iterable[str] = ()
) -> tuple[RunConfig, frozenset[str]]:
    """Return the config that a command line asks for, and the keys that the user set.

    Starts from the named config (or the file's `base`; a file that sets everything needs
    neither), then the file's values, then the assignments.

    Raises:
        ConfigError: neither name nor file, or as the parts above do.
    """
    base, values = (None, dict[str, Any]()) if file is None else load_yaml(file)
    if name is not None and base is not None and name != base:
        raise ConfigError(
            f"base = {shown(base)} in {file}: contradicts the config {name!r} asked for"
        )
    values |= parse_assignments(assignments)
    start = name or base
    if start is None and file is None:
        raise ConfigError("no config given: name one, or give a YAML file")
    return _with_values(get_config(start).to_dict() if start else {}, values), frozenset(values)


def _with_values(tree: dict[str, Any], values: Mapping[str, Any]) -> RunConfig:
    known = dotted_fields()
    for key, value in values.items():
        _hint(key, known)
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return RunConfig.from_dict(tree)


def _hint(key: str, known: Mapping[str, Any]) -> Any:
    if key in known:
        return known[key]
    inside = [full for full in known if full.startswith(f"{key}.")]
    if inside:
        raise ConfigError(f"{key} is a section; set one of {', '.join(inside)}")
    same_end = [full for full in known if full.rpartition(".")[2] == key]
    near = f"; did you mean {' or '.join(map(repr, same_end))}?" if same_end else ""
    raise ConfigError(f"unknown key {shown(key)}{near or did_you_mean(key, known)}")


def flatten(
    tree: Mapping[str, Any], prefix: str = "", whole: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings with its dotted key; those in `whole` stay mappings."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in whole:
            yield from flatten(value, f"{key}.", whole)
        else:
            yield key, value


def _split(text: str, hint: Any) -> str | list[str]:
    if not any(get_origin(member) is tuple for member in alternatives(hint)):
        return text
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [part.strip() for part in inner.split(",")] if inner.strip() else []


def _from_text(value: Any, hint: Any) -> Any:
    """Read texts as the bool, int or float that `hint` asks for; leave all else to `typed`."""
    members = alternatives(hint)
    if isinstance(value, list):
        return [_convert(item, int) for item in value]
    for member, convert in ((bool, _boolean), (int, int), (float, float)):
        if member in members:
            return _convert(value, convert)
    return value


def _convert(value: Any, convert: Callable[[str], Any]) -> Any:
    try:
        return convert(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _boolean(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)
