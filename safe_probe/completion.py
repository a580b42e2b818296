"""Completion scripts, made from the parser so that they never lag behind it."""

import argparse

from probes.findings.catalogue import CATALOGUE


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """A script to be sourced, e.g. ``source <(safe-probe completion bash)``.

    Args:
        shell: ``bash`` or ``zsh``.
        parser: the parser with its commands.
    """
    cases = "\n".join(
        f'    {name}) words="{" ".join(_words(name, command))}" ;;'
        for name, command in _commands(parser).items()
    )
    function = (
        "_safe_probe() {\n"
        '  local current="${COMP_WORDS[COMP_CWORD]}" words\n'
        '  case "${COMP_WORDS[1]}" in\n'
        f"{cases}\n"
        '    *) words="" ;;\n'
        "  esac\n"
        f'  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(_commands(parser))} --help"\n'
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))\n'
        "}\n"
        "complete -o default -F _safe_probe safe-probe"
    )
    if shell == "zsh":
        load = [f"autoload -U +X {name} && {name}" for name in ("compinit", "bashcompinit")]
        return "\n".join([*load, function])
    return function


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _words(name: str, command: argparse.ArgumentParser) -> list[str]:
    words = [option for action in command._actions for option in action.option_strings]
    words += [str(c) for action in command._actions for c in action.choices or ()]
    return words + (list(CATALOGUE) if name == "explain" else [])
