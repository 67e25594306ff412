"""Nothing in the sources unpickles, evaluates foreign text, or starts a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [p for room in ("clipkit", "data_tools", "launch") for p in (ROOT / room).rglob("*.py")]
MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal",
    "shelve", "pandas", "runpy", "code", "codeop", "pty",
}  # fmt: skip
NEVER = {  # by the name it is imported from, however it is called here; a "*" ends a prefix
    "eval", "exec", "compile", "__import__", "builtins.*", "importlib.import_module", "os.system",
    "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "multiprocessing.connection.Client",
    "shutil.unpack_archive", "tempfile.mktemp", "xml.*.parse", "xml.*.fromstring",
    "yaml.Loader", "yaml.UnsafeLoader",
    "yaml.FullLoader", "yaml.unsafe_load*", "yaml.full_load*", "yaml.load_all", "torch.jit.load",
    "torch.hub.*", "torch.package.*", "torch.serialization.*", "torch.export.load",
    "torch.distributed.broadcast_object_list", "torch.distributed.*_object*", "numpy.fromregex",
    "faiss.read_*", "faiss.deserialize_*", "webdataset.WebDataset", "webdataset.decode",
    "webdataset.DataPipeline", "webdataset.gopen.*", "transformers.*",
}  # fmt: skip
NEEDED = {  # function: (keyword, the only value it may have)
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
KEYWORDS = ("shell", "trust_remote_code", "allow_pickle", "allow_unsafe", "weights_only")
METHODS = {"extractall", "extract", "load_checkpoint", "allow_unsafe"}
LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "_StrictLoader"}  # the last is a SafeLoader
REFLECTED = {"os", "subprocess", "builtins", "torch", "numpy", "yaml", "faiss"}
ALLOWED = {
    ("clipkit/config/parts.py", "eval"),  # of an annotation in a module that is run anyway
    ("clipkit/config/parts.py", "importlib.import_module"),  # of clipkit, or of `extensions`
    ("clipkit/__init__.py", "importlib.import_module"),  # of a constant
    ("data_tools/engines/__init__.py", "importlib.import_module"),  # one of our engines
    ("data_tools/engines/task.py", "importlib.import_module"),  # of a task of our own processes
    ("clipkit/retrieval/memory/stored_side.py", "faiss.read_index"),  # fuzzed; no code in its files
    ("clipkit/data/stream_shards.py", "webdataset.gopen.gopen_pipe"),  # data.allow_pipe
    ("clipkit/towers/build.py", "transformers.MODEL_MAPPING"),
    ("clipkit/bench/loader.py", "webdataset.WebDataset"),  # of the bench's own shards, no decoding
    ("clipkit/towers/build.py", "transformers.AutoConfig.from_pretrained"),
    ("clipkit/towers/build.py", "transformers.AutoConfig"),  # without remote code
}


def imported(tree: ast.AST) -> dict[str, str]:
    """Name in a file -> dotted name of what it stands for."""
    names = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`a.b.c` of an attribute or a name, "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else node


def call_problems(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    """What is unsafe about one call."""
    name = dotted(node.func, names)
    keywords = {k.arg: k.value for k in node.keywords}
    if name in NEEDED:
        keyword, value = NEEDED[name]
        if _constant(keywords.get(keyword)) is not value:
            yield f"{name} without {keyword}={value}"
    if name == "yaml.load":
        loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        if loader is None or dotted(loader, names) not in LOADERS:
            yield name
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield f".{node.func.attr}"
    if name.startswith("subprocess.") and len(node.args) > 1:
        yield f"{name} with arguments that have no name"
    if name == "getattr" and dotted(node.args[0], names) in REFLECTED:
        yield f"getattr of {dotted(node.args[0], names)}"
    for keyword in KEYWORDS[:-1]:
        if keyword in keywords and _constant(keywords[keyword]) is not False:
            yield f"{keyword}="
    if "pickle_module" in keywords or _constant(keywords.get("weights_only")) is False:
        yield "pickle"


def problems(tree: ast.AST) -> Iterator[str]:
    """What is unsafe in one file."""
    names = imported(tree)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Constant) and node.value in KEYWORDS[1:]:
            yield f"'{node.value}' as a text"  # a key of **keywords
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = dotted(node, names)
            if any(fnmatchcase(name, pattern) for pattern in NEVER):
                yield name
            if name in NEEDED and id(node) not in called:
                yield f"{name} under another name"
        if isinstance(node, ast.Call):
            yield from call_problems(node, names)


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
        "engine.load_checkpoint(p)", "import torch as t; t.load(f)",
        "from torch import load; load(f)",
        "load = torch.load", "import numpy as xp; xp.load(f)", "torch.load(f, **options)",
        "from os import system as s; s(x)", "import os as o; o.execv(x, y)", "getattr(os, x)(y)",
        "__import__('x')", "import importlib; importlib.import_module(x)", "import pandas as pd",
        "torch.jit.load(f)", "faiss.read_index(f)", "subprocess.Popen(x, 0, None)",
        "f(**{'trust_remote_code': True})", "from yaml import load; load(f, Loader=L)",
        "shutil.unpack_archive(f)", "import torch.distributed as d; d.all_gather_object(a, b)",
        "from transformers import AutoModel as A; A.from_pretrained(x)", "builtins.exec(x)",
    ],
)  # fmt: skip
def test_each_kind_is_seen(source: str) -> None:
    assert list(problems(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "model.eval()",
        "yaml.load(f, yaml.SafeLoader)", "yaml.safe_load(f)", "subprocess.run(['a'])",
        "import numpy as np; np.load(f, mmap_mode='r', allow_pickle=False)", "re.compile(x)",
    ],
)  # fmt: skip
def test_safe_forms_pass(source: str) -> None:
    assert not list(problems(ast.parse(source)))
