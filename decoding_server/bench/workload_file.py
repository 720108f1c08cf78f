"""A benchmark's flags in a YAML file: `--workload FILE`. What the command line gives counts instead.

Keys are flags without their dashes; a list repeats its flag. `strategies` may be a list of presets, or a mapping of
names to request bodies (or to a preset's name; null is the preset of that name).
"""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

STRATEGIES = "strategies"
EXCLUSIVE = (("model", "base_url"),)
"""Of these, what the command line gives takes the place of the file's other one."""


class WorkloadError(ValueError):
    """The file can't be used; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WorkloadError(message)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: YAML's own loader keeps the last value and says nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node


def merged(
    given: argparse.Namespace, add_flags: Callable[[argparse.ArgumentParser], None], defaults: Mapping[str, Any]
) -> argparse.Namespace:
    """Defaults, then the file's values, then the command line's. All flags have the default `argparse.SUPPRESS`.

    Raises WorkloadError.
    """
    values = dict(vars(given))
    path = values.get("workload")
    from_file = {} if path is None else read(path, add_flags)
    for group in EXCLUSIVE:
        if any(name in values for name in group):
            from_file = {name: value for name, value in from_file.items() if name not in group}
    return argparse.Namespace(**{**defaults, **from_file, **values})


def parsed(parser: argparse.ArgumentParser, given: Sequence[str] | None) -> argparse.Namespace:
    """The flags of a program of its own, whose parser has their defaults; it gets `--workload` too. given: the command
    line, None for the process's. What is wrong ends the program, as with the parser alone."""
    parser.allow_abbrev = False  # else it would be unclear which of the file's flags are on the command line
    add = parser.add_argument
    add("--workload", type=Path, metavar="FILE", help="YAML file with any of these flags; the command line wins")
    words = sys.argv[1:] if given is None else list(given)
    alone = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    alone.add_argument("--workload", type=Path)
    path = alone.parse_known_args(words)[0].workload
    if path is None:
        return parser.parse_args(words)
    flags = parser._option_string_actions
    try:
        content = contents(path)
        check_names(content, flags)
        said = {word.partition("=")[0] for word in words}
        line = arguments({key: value for key, value in content.items() if f"--{flag_of(key)}" not in said}, flags)
    except WorkloadError as error:
        parser.error(str(error) if str(error).startswith("--workload") else f"--workload {path}: {error}")
    return parser.parse_args([*line, *words])


def read(path: Path, add_flags: Callable[[argparse.ArgumentParser], None]) -> dict[str, Any]:
    """The file's values by the names of the flags, checked as the command line's are. Raises WorkloadError."""
    content = contents(path)
    parser = _Parser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    try:
        flags = parser._option_string_actions
        check_names(content, flags)
        return vars(parser.parse_args(arguments(content, flags)))
    except WorkloadError as error:
        raise WorkloadError(f"--workload {path}: {error}") from None


def contents(path: Path) -> dict[Any, Any]:
    """Raises WorkloadError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise WorkloadError(f"--workload {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise WorkloadError(f"--workload {path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise WorkloadError(f"--workload {path}: must be a mapping of flags to values")
    return content


def check_names(content: Mapping[Any, Any], flags: Collection[str]) -> None:
    """Before the values: one that says nothing (null, false, an empty list) never meets the parser. Raises
    WorkloadError."""
    names = [flag_of(key) for key in content]
    for key, name in zip(content, names, strict=True):
        if name == "workload":
            raise WorkloadError("a workload can't name another")
        if name != STRATEGIES and f"--{name}" not in flags:
            raise WorkloadError(f"{key}: there is no flag --{name}")
        if names.count(name) > 1:
            raise WorkloadError(f"{key}: is given twice")


def flag_of(key: Any) -> str:
    return str(key).replace("_", "-")


def arguments(content: Mapping[Any, Any], flags: Mapping[str, argparse.Action]) -> list[str]:
    """The file as a command line. Raises WorkloadError."""
    line: list[str] = []
    for key, value in content.items():
        name = flag_of(key)
        action = flags.get(f"--{name}")
        if action is None:  # of the names, only this one is no flag
            for text in strategies(value):
                line += ["--strategy", text]
            continue
        if action.nargs == "+" and isinstance(value, list) and value:
            line += [f"--{name}", *map(str, value)]
            continue
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                line.append(f"--{name}")
            elif one is None or one is False:
                continue
            elif isinstance(one, (str, int, float)):
                # One word, so that a value that begins with a dash is none of the flags.
                line.append(f"--{name}={one}")
            else:
                raise WorkloadError(f"{key}: must be a text or a number")
    return line


def strategies(value: Any) -> Sequence[str]:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    if not isinstance(value, dict):
        raise WorkloadError("strategies: must be a list of presets, or a mapping of names to request bodies")
    texts = []
    for name, body in value.items():
        if body is None:
            texts.append(str(name))
        else:
            texts.append(f"{name}={body if isinstance(body, str) else json.dumps(body)}")
    return texts
