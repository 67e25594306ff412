"""One YAML file plus `key=value` overrides -> a frozen, complete RunConfig."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from clipkit.config.parts import check_part, suggest
from clipkit.config.redact import redact
from clipkit.config.schema import RunConfig
from clipkit.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MAX_BYTES, _MAX_VALUES = 1 << 20, 100_000  # of a config; a few lines of aliases unfold to billions
_PATTERNS = re.compile(r"data\.(train|sources\.\d+\.shards)\b")


class _StrictLoader(yaml.SafeLoader):
    """safe_load that refuses a key given twice."""

    merged = 0

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be plain text")
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: key '{key}' is given twice; remove one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges (<<) of merges copy their keys before anyone can count what they unfold to."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > _MAX_VALUES:
            raise ConfigError(f"merges (<<) unfold to more than {_MAX_VALUES:,} values")


def _parse(text: str, where: str) -> Any:
    """YAML that is a tree of bounded size.

    Raises:
        ConfigError: It is not, or a key is given twice.
    """
    try:
        tree = yaml.load(text, _StrictLoader)  # noqa: S506  (a SafeLoader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # on odd tags its constructors raise whatever their parsers do
        raise ConfigError(
            f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}"
        ) from None
    _check_tree(tree, where)
    return tree


def _check_tree(tree: Any, where: str) -> None:
    """Raises ConfigError on more values than a config has, and on text that no file can hold."""
    count, waiting = 0, [tree]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ConfigError(
                f"{where}: unfolds to more than {_MAX_VALUES:,} values; use fewer aliases (*)"
            )
        if isinstance(value, dict):
            waiting.extend((*value.keys(), *value.values()))
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        elif isinstance(value, str) and not _is_utf8(value):
            raise ConfigError(
                f"{where}: {value[:40]!r} is no text; \\ud800 to \\udfff are no letters"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_yaml(path: Path) -> Any:
    """Parse one YAML file safely.

    Raises:
        ConfigError: Missing, unreadable or malformed file, or a duplicate key; names file and line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: is larger than 1 MiB; that is no config")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return _parse(text, str(path))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place; list items by index (addons.0.weight=0.5).

    Raises:
        ConfigError: No `=`, unreadable value, or a path through something that is not a mapping.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override '{override}': write it as key=value, e.g. optim.lr=3e-4")
    try:
        value = _parse(text, "value")
    except ConfigError:
        raise ConfigError(f"override '{override}': the value is not valid YAML; quote it") from None
    node: Any = tree
    steps = key.split(".")
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(node, list):
            if not step.isdigit() or int(step) >= len(node):
                raise ConfigError(
                    f"override '{key}': '{step}' is no index of a list of {len(node)}"
                )
            index: Any = int(step)
        elif isinstance(node, dict):
            index = step
            if not last:
                node.setdefault(step, {})
        else:
            raise ConfigError(
                f"override '{key}': '{'.'.join(steps[:i])}' is a value, not a section"
            )
        if last:
            node[index] = value
        else:
            if node[index] is None:
                node[index] = {}
            node = node[index]


def expand_variables(value: Any, where: str) -> Any:
    """Replace ${NAME} by the environment's value in every string below `value`.

    Raises:
        ConfigError: A variable is not set; names it.
    """
    if isinstance(value, dict):
        return {k: expand_variables(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [expand_variables(v, f"{where}.{i}") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    patterns = _PATTERNS.match(where)  # a folder's own [x] is no character class

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(
                f"{where}: environment variable ${{{name}}} is not set; export {name}=..."
            )
        return glob.escape(os.environ[name]) if patterns else os.environ[name]

    return _VARIABLE.sub(replace, value)


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    inside = False  # a list or mapping: the next step is an index or a name
    for step in location:
        if inside:
            inside = False
            continue
        field = (
            model.model_fields.get(step)
            if isinstance(model, type) and issubclass(model, BaseModel)
            else None
        )
        if field is None:
            return []
        inside = get_origin(field.annotation) in (tuple, dict)
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
    return list(model.model_fields) if model else []


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    location = first["loc"]
    place = ".".join(str(step) for step in location if step != "function-after")
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggest(str(location[-1]), _keys_at(location[:-1]))}"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        return text if not place or text.startswith(place) else f"{place}: {text}"
    return f"{place}: {first['msg']} (got {first['input']!r})"


def _check_parts(config: RunConfig) -> RunConfig:
    ext = config.extensions
    losses = [
        check_part(
            "losses",
            s,
            f"loss.{i}" if len(config.loss) > 1 else "loss",
            extensions=ext,
            extra={"weight": (float, 1.0)},
        )
        for i, s in enumerate(config.loss)
    ]
    addons = [
        check_part("addons", s, f"addons.{i}", extensions=ext, extra={})
        for i, s in enumerate(config.addons)
    ]
    tasks = [
        check_part(
            "eval",
            s,
            f"eval.tasks.{i}",
            extensions=ext,
            extra={"data": (str, ...), "name": (str | None, None)},
        )
        for i, s in enumerate(config.eval.tasks)
    ]
    for i, task in enumerate(tasks):
        if task["data"] not in config.data.eval:
            known = list(config.data.eval)
            raise ConfigError(
                f"eval.tasks.{i}.data: '{task['data']}' is not in data.eval"
                f"{suggest(task['data'], known)}"
            )
        task["name"] = task["name"] or task["data"]
    names = [task["name"] for task in tasks]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"eval.tasks.{i}.name: '{name}' is taken; name each task")
    return config.model_copy(
        update={
            "loss": tuple(losses),
            "addons": tuple(addons),
            "eval": config.eval.model_copy(update={"tasks": tuple(tasks)}),
        }
    )


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read, override, expand and check a run's config.

    Precedence: schema default < file < override. A relative `model.arch` json is looked up beside
    the config file first.

    Raises:
        ConfigError: One line that names the file or key and the remedy.
    """
    path = Path(path)
    tree = read_yaml(path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections (run, model, data, ...)")
    if any(o.startswith("loss.") for o in overrides) and tree.get("loss") is None:
        tree["loss"] = dict(
            RunConfig.model_fields["loss"].default[0]
        )  # so that loss.weight=2 has a kind
    for override in overrides:
        apply_override(tree, override)
    for section in ("data", "addons"):
        if section in tree:
            tree[section] = expand_variables(tree[section], section)
    if isinstance(tree.get("run"), dict) and "dir" in tree["run"]:
        tree["run"]["dir"] = expand_variables(tree["run"]["dir"], "run.dir")
    model = tree.get("model")
    if isinstance(model, dict) and str(model.get("arch", "")).endswith(".json"):
        beside = path.resolve().parent / model["arch"]
        model["arch"] = str(beside if beside.exists() else Path(model["arch"]).resolve())
    try:
        config = RunConfig.model_validate(tree)
        return _check_parts(config)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump_config(config: RunConfig) -> str:
    """The complete config as YAML, in schema order, secrets masked."""
    return yaml.safe_dump(
        redact(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True
    )
