"""YAML in and out: the one place that reads it, since a file may be a stranger's.

Aliases (`*name`) are refused: nine lines of them unfold to gigabytes, and no file of ours has one.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError, shorten
from configs.schema import RunConfig

_MOST_BYTES = 64 * 2**10  # ours have about one thousand; PyYAML takes a second for so many
_DEEPEST = 50
_MOST_DIGITS = 100
_UNREADABLE = (
    OSError, ValueError, OverflowError, LookupError, AttributeError, yaml.YAMLError
)  # fmt: skip
"""The latter come from PyYAML, for an impossible date, `!!bool x` and the like."""
_NULL = "tag:yaml.org,2002:null"


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader whose result is no larger than the text that it is read from."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Build one node; an alias or deep nesting is an error."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not read; write the value itself there"
        elif self._depth == _DEEPEST:
            problem = f"nested more than {_DEEPEST} deep"
        else:
            self._depth += 1
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _integer(loader: _BoundedLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > _MOST_DIGITS:  # Python cannot even write one of more than 4300
        problem = f"a number of more than {_MOST_DIGITS} digits"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return loader.construct_yaml_int(node)


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _integer)


class _TextLoader(_BoundedLoader):
    """Reads every scalar but null as text, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping; a repeated key is an error, not "the last one wins"."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            count = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            twice = ", ".join(sorted(str(key) for key, times in count.items() if times > 1))
            problem = f"key {shorten(twice)} stands twice in one mapping"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return mapping


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == _NULL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Any:
    """Return what the YAML file `path` holds, scalars as YAML understands them.

    Raises:
        ConfigError: not readable, too large, not YAML, with an alias, or nested too deeply.
    """
    return _read(path, _BoundedLoader)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`, scalars as text or None.

    A config's fields know their types; plain YAML would read `precision: no` as False and
    `lr: 1e-3` as a text.

    Raises:
        ConfigError: as read_yaml does, a key that stands twice, or not a mapping.
    """
    content = _read(path, _TextLoader)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return content


def _read(path: Path, loader: type[_BoundedLoader]) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"it is larger than {_MOST_BYTES:,} bytes")
        return yaml.load(data.decode("utf-8"), loader)
    except _UNREADABLE as error:
        why = shorten(" ".join(str(error).split()))  # PyYAML's take several lines
        raise ConfigError(f"cannot read the YAML file {path}: {why}") from error


def dump_yaml(config: RunConfig) -> str:
    """Return `config` as YAML that load_yaml reads back to the same values."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
