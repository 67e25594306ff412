"""Parts without a registry: file name = kind, keyword-only signature = YAML schema.

The signature is read from the source (ast), not by importing it, so a misspelt argument of a loss
is reported before torch is loaded. A part file ends with `PART = TheClass`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError, create_model

from clipkit.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list": list,
    "dict": dict,
    "tuple": tuple,
    "Literal": Literal,
    "Any": Any,
    "None": None,
    "__builtins__": {},
}


@dataclass(frozen=True)
class Parameter:
    """One YAML argument of a part."""

    name: str
    annotation: Any
    type_text: str
    required: bool
    default: Any
    doc: str


@dataclass(frozen=True)
class PartInfo:
    """What can be known of a part without importing it."""

    kind: str
    class_name: str
    doc: str
    parameters: tuple[Parameter, ...]


def suggest(word: str, choices: list[str]) -> str:
    """Return "; did you mean 'x'?" or a short list of choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    shown = ", ".join(sorted(choices)[:20])
    return f"; choose from: {shown}" if choices else ""


def _part_class(path: Path) -> tuple[str, ast.ClassDef] | None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not valid Python: {error}") from None
    names = [
        node.value.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Name)
        and any(isinstance(t, ast.Name) and t.id == "PART" for t in node.targets)
    ]
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return (names[0], classes[names[0]]) if names and names[0] in classes else None


def list_kinds(room: str) -> list[str]:
    """Kinds of a room ("losses", "addons", "eval"): its files that define PART."""
    files = [*(_PACKAGE / room).glob("*.py"), *(_PACKAGE / room).glob("*/__init__.py")]
    named = [(p.parent.name if p.name == "__init__.py" else p.stem, p) for p in files]
    return sorted(name for name, path in named if name != room and _part_class(path))


def _find_file(room: str, kind: str, extensions: tuple[str, ...]) -> tuple[str, Path]:
    """Module name and file of a kind.

    Raises:
        ConfigError: No such kind, or a dotted kind outside `extensions`.
    """
    if "." not in kind:
        if kind not in list_kinds(room):
            raise ConfigError(f"unknown kind '{kind}'{suggest(kind, list_kinds(room))}")
        path = _PACKAGE / room / f"{kind}.py"
        return (
            f"clipkit.{room}.{kind}",
            path if path.exists() else _PACKAGE / room / kind / "__init__.py",
        )
    if not any(kind == e or kind.startswith(e + ".") for e in extensions):
        package = kind.split(".")[0]
        raise ConfigError(
            f"kind '{kind}' is outside clipkit; allow it with extensions: [{package}]"
        )
    try:
        spec = importlib.util.find_spec(kind)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"kind '{kind}': no such module; is its package installed or on PYTHONPATH?"
        )
    return kind, Path(spec.origin)


def _argument_docs(docstring: str) -> dict[str, str]:
    """Texts of a Google docstring's Args section, by argument."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.M)
    docs: dict[str, str] = {}
    name = ""
    for line in match.group(1).splitlines() if match else []:
        head = re.match(r"\s{1,4}(\w+)(?: \([^)]*\))?: (.*)", line)
        if head:
            name = head.group(1)
            docs[name] = head.group(2).strip()
        elif name and line.strip():
            docs[name] += " " + line.strip()
    return docs


@cache
def read_part(room: str, kind: str, extensions: tuple[str, ...] = ()) -> PartInfo:
    """Read a part's class name, first docstring line and YAML arguments from its source."""
    _, path = _find_file(room, kind, extensions)
    try:
        found = _part_class(path)
    except ConfigError as error:
        raise ConfigError(f"kind '{kind}': {error}") from None
    if found is None:
        raise ConfigError(f"kind '{kind}': {path} does not end with PART = TheClass")
    name, node = found
    doc = ast.get_docstring(node) or ""
    init = next(
        (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    docs = _argument_docs(doc)
    parameters = []
    for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults) if init else ():
        try:
            parameters.append(_parameter(arg, default, docs.get(arg.arg, "")))
        except Exception as error:  # whatever evaluating a foreign annotation raises
            raise ConfigError(
                f"kind '{kind}': argument '{arg.arg}' in {path}: {error}; annotate with "
                f"{', '.join(t for t in _TYPES if t != '__builtins__')} and give a literal default"
            ) from None
    return PartInfo(kind, name, doc.split("\n")[0], tuple(parameters))


def _parameter(arg: ast.arg, default: ast.expr | None, doc: str) -> Parameter:
    source = ast.unparse(arg.annotation) if arg.annotation else "Any"
    return Parameter(
        name=arg.arg,
        annotation=eval(source, dict(_TYPES)),  # noqa: S307  (the module itself is run right after)
        type_text=source,
        required=default is None,
        default=None if default is None else ast.literal_eval(default),
        doc=doc,
    )


def check_part(
    room: str,
    spec: dict[str, Any],
    where: str,
    *,
    extensions: tuple[str, ...] = (),
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Check one part of the config against its signature and fill in its defaults.

    Args:
        room: Where the kind's file lives.
        spec: The YAML mapping, with its "kind".
        where: Dotted place in the config, for messages.
        extensions: Packages allowed as dotted kinds.
        extra: Keys handled by the caller (a loss's weight), name -> (type, default).

    Returns:
        The complete mapping, JSON-able.

    Raises:
        ConfigError: Names the key and the nearest right one.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("kind"), str):
        raise ConfigError(
            f"{where}: needs a mapping with a 'kind', e.g. {{kind: {list_kinds(room)[0]}}}"
        )
    try:
        info = read_part(room, spec["kind"], extensions)
    except ConfigError as error:
        raise ConfigError(f"{where}.kind: {error}") from None
    fields: dict[str, Any] = {"kind": (str, ...), **extra}
    for p in info.parameters:
        fields[p.name] = (p.annotation, ... if p.required else p.default)
    known = list(fields)
    for key in spec:
        if key not in fields:
            raise ConfigError(
                f"{where}.{key}: unknown key of kind '{info.kind}'{suggest(str(key), known)}"
            )
    model = create_model(
        "Part", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
    )
    try:
        return model(**spec).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise ConfigError(f"{place}: {first['msg']} (got {first['input']!r})") from None


def part_class(room: str, kind: str, extensions: tuple[str, ...] = ()) -> Any:
    """Import the kind's module and return its PART.

    Raises:
        ConfigError: No such kind.
    """
    module, _ = _find_file(room, kind, extensions)
    return importlib.import_module(module).PART


def build_part(
    room: str,
    spec: dict[str, Any],
    *given: Any,
    base: type = object,
    extensions: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
) -> Any:
    """Import the kind's module, build its PART: `given` before the `*`, YAML arguments after it.

    Raises:
        ConfigError: The part is no subclass of `base`: it belongs in another section.
    """
    part = part_class(room, spec["kind"], extensions)
    if not issubclass(part, base):
        raise ConfigError(f"kind '{spec['kind']}' does not belong in {room}: no {base.__name__}")
    return part(*given, **{k: v for k, v in spec.items() if k != "kind" and k not in drop})
