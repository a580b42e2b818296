"""What every config section can do: check its types, become a dict, be read from a dict."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

from configs.checks import typed
from configs.errors import ConfigError, shown, unknown


def field_types(section: type["Section"]) -> dict[str, Any]:
    """Return the resolved type of every field of `section`, in order."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


def is_section(hint: Any) -> bool:
    """Return True when a field of this type is itself a config section."""
    return isinstance(hint, type) and issubclass(hint, Section)


@dataclass(frozen=True)
class Section:
    """Base of the frozen dataclasses in configs.schema."""

    PATH: ClassVar[str] = ""
    """Dotted place in the run's config, as `--set` and the errors name it; "" is the top."""

    @classmethod
    def key(cls, name: str) -> str:
        """Return the dotted key of the field `name`, e.g. "model.fusion.lora_rank"."""
        return f"{cls.PATH}.{name}" if cls.PATH else name

    def check_types(self) -> None:
        """Bring every field to its declared type (see configs.checks.typed).

        Raises:
            ConfigError: a field has a value of another type.
        """
        for name, hint in field_types(type(self)).items():
            # the dataclass is frozen for its users; this runs once, while it is being made
            object.__setattr__(self, name, typed(self.key(name), getattr(self, name), hint))

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested dicts, lists and scalars, ready for JSON or YAML."""
        return {name: _plain(getattr(self, name)) for name in field_types(type(self))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the section from nested mappings; the inverse of `to_dict`.

        Raises:
            ConfigError: unknown or missing key, wrong type, or a value that is not allowed.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.PATH or 'config'} = {shown(values)}: must be a mapping")
        known = field_types(cls)
        for name in values:
            if name not in known:
                raise ConfigError(unknown(f"key in {cls.PATH or 'the config'}", str(name), known))
        required = [f.name for f in fields(cls) if _is_required(f)]
        missing = [cls.key(name) for name in required if name not in values]
        if missing:
            raise ConfigError(f"missing key {', '.join(map(repr, missing))}")
        return cls(
            **{
                name: known[name].from_dict(value) if is_section(known[name]) else value
                for name, value in values.items()
            }
        )


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
