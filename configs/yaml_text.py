"""YAML in and out. Values are read as text, because the config's fields know their types.

Plain YAML would read `precision: no` as False and `lr: 1e-3` as a text.
"""

from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError
from configs.schema import RunConfig

_NULL = "tag:yaml.org,2002:null"


class _TextLoader(yaml.SafeLoader):
    """Reads every scalar but null as text, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping; a repeated key is an error, not "the last one wins"."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise ConfigError(f"key {', '.join(sorted(twice))} stands twice in one mapping")
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == _NULL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path`, scalars as text or None.

    Raises:
        ConfigError: not readable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _TextLoader)
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())  # PyYAML's take several lines
        raise ConfigError(f"cannot read the config file {path}: {why}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the config file {path} must hold a mapping of keys to values")
    return content


def dump_yaml(config: RunConfig) -> str:
    """Return `config` as YAML that load_yaml reads back to the same values."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
