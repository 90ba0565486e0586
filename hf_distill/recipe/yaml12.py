"""Read and write the YAML of a recipe by the rules of YAML 1.2, where PyYAML follows 1.1.

Three differences would bite here. In 1.1 `1e-4` is a string, so a learning rate would arrive as text. In 1.1
`yes`, `no`, `on` and `off` are booleans, so a label named "no" would arrive as False (and `eval_strategy: no`
too). And PyYAML keeps the last of two equal keys without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# The order matters: an integer matches the pattern of a float too.
_RESOLVERS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """A safe loader (no Python objects) that resolves plain words as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError as error:  # Python refuses to read integers of more than 4300 digits
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either version of YAML would read as something else."""

    yaml_implicit_resolvers = {
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )


def read(text: bytes | str) -> tuple[Any, list[tuple[str, str]], list[str]]:
    """Read a YAML document: its content, its duplicate keys, and why it could not be read.

    Args:
        text: One document; bytes are decoded as YAML says (UTF-8, or UTF-16 by its mark).

    Returns:
        The content; (path, sentence) for every key that stands twice in one mapping; a list with the reason if
        the text is not YAML, else empty.

    Example:
        >>> read("rate: 1e-4\\nlabels: [no, yes]")
        ({'rate': 0.0001, 'labels': ['no', 'yes']}, [], [])
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, [], []
        duplicates: list[tuple[str, str]] = []
        _walk(node, (), duplicates, parents=[], seen=set())
        return loader.construct_document(node), duplicates, []
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return None, [], [where + ", ".join(part for part in (error.context, error.problem) if part)]
    except yaml.YAMLError as error:  # bytes that are no text
        return None, [], [" ".join(str(error).split())]
    except RecursionError:
        return None, [], ["nested too deeply to be a recipe"]
    except (ValueError, LookupError, AttributeError) as error:  # `!!float high`: a tag its value contradicts
        return None, [], [f"a value does not fit its tag: {error}"]


def write(content: Any) -> str:
    """Write the YAML text of `content`, which `read` turns into the same content again.

    Example:
        >>> write({"rate": 0.0001, "labels": ["no", "1e-4"]})
        "rate: 0.0001\\nlabels:\\n- 'no'\\n- '1e-4'\\n"
    """
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _walk(
    node: yaml.Node,
    path: tuple[str, ...],
    duplicates: list[tuple[str, str]],
    *,
    parents: list[int],
    seen: set[int],
) -> None:
    if id(node) in parents:
        raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
    if id(node) in seen:  # an alias: its anchor has been looked at
        return
    seen.add(id(node))
    parents.append(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _walk(child, (*path, str(index)), duplicates, parents=parents, seen=seen)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[tuple[str, str], tuple[int, yaml.Node]] = {}
        for key, child in node.value:
            here = (*path, str(key.value) if isinstance(key, yaml.ScalarNode) else "?")
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                first = first_lines.setdefault((key.tag, key.value), (line, key))
                if first[1] is not key:
                    duplicates.append(
                        (".".join(here), f"the key stands twice, in lines {first[0]} and {line}; keep one")
                    )
            _walk(child, here, duplicates, parents=parents, seen=seen)
    parents.pop()
