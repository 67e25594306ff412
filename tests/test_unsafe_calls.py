"""Nothing in the sources unpickles, evaluates foreign text, or starts a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for room in ("clipkit", "data_tools", "launch") for p in (ROOT / room).rglob("*.py")]
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "yaml.unsafe_load_all", "yaml.load_all", "tempfile.mktemp", "subprocess.getoutput",
    "subprocess.getstatusoutput", "pandas.read_pickle", "numpy.fromregex",
}  # fmt: skip
NEEDED = {  # call: (keyword, the only value it may have)
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
}
METHODS = {"extractall", "extract", "load_checkpoint", "allow_unsafe"}
LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "_StrictLoader"}  # the last is a SafeLoader
ALLOWED = {("clipkit/config/parts.py", "eval")}  # of an annotation in a module that is run anyway


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute or a name, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else node


def call_problems(node: ast.Call) -> Iterator[str]:
    """What is unsafe about one call."""
    name = dotted(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    if name in CALLS:
        yield name
    if name in NEEDED:
        keyword, value = NEEDED[name]
        if _constant(keywords.get(keyword)) is not value:
            yield f"{name} without {keyword}={value}"
    if name == "yaml.load":
        loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        if loader is None or dotted(loader) not in LOADERS:
            yield name
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield f".{node.func.attr}"
    for keyword in ("shell", "trust_remote_code", "allow_pickle", "allow_unsafe"):
        if keyword in keywords and _constant(keywords[keyword]) is not False:
            yield f"{keyword}="


def problems(tree: ast.AST) -> Iterator[str]:
    """What is unsafe in one file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            yield from call_problems(node)


def test_no_unsafe_call_in_the_sources() -> None:
    found = []
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        for problem in problems(ast.parse(path.read_text(encoding="utf-8"))):
            if (name, problem) not in ALLOWED:
                found.append(f"{name}: {problem}")
    assert len(SOURCES) > 200 and not found, found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)", "np.load(f)", "np.load(f, allow_pickle=True)",
        "yaml.load(f)", "yaml.load(f, Loader=yaml.FullLoader)", "yaml.load(f, yaml.Loader)",
        "eval(x)", "exec(x)", "os.system(x)", "subprocess.run(x, shell=True)", "run(x, shell=s)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "tar.extractall(p)",
        "engine.load_checkpoint(p)",
    ],
)  # fmt: skip
def test_each_kind_is_seen(source: str) -> None:
    assert list(problems(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "model.eval()",
        "yaml.load(f, yaml.SafeLoader)", "yaml.safe_load(f)", "subprocess.run(['a'])",
    ],
)  # fmt: skip
def test_safe_forms_pass(source: str) -> None:
    assert not list(problems(ast.parse(source)))
