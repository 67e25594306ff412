"""Every common mistake: non-zero status and one line that names it, before torch is imported.

A package `torch` that raises on import stands in front of the real one. All cases run in one
process; a single one is started as users start it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.checkpoint.files import sha256
from tests.fixtures_model import ARCH, write_arch
from tests.fixtures_shards import write_shards

DRIVER = """
import contextlib, io, json, os, sys, traceback
from clipkit.cli.main import main
results = {}
for name, (arguments, environment) in json.loads(sys.stdin.read()).items():
    os.environ.pop("WORLD_SIZE", None)
    os.environ.update(environment)
    sys.argv = ["clipkit", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status, _ = -1, err.write(traceback.format_exc())
    results[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps(results))
"""

# name: (overrides, environment, exit status, what the line must hold)
CASES = {
    "key": (["optim.lrr=1"], {}, 2, "optim.lrr: unknown key; did you mean 'lr'?"),
    "section": (["optm.lr=1"], {}, 2, "did you mean 'optim'?"),
    "kind": (["loss.kind=infonec"], {}, 2, "unknown kind 'infonec'; did you mean 'infonce'?"),
    "value": (["optim.lr=fast"], {}, 2, "optim.lr"),
    "override": (["optim.lr"], {}, 2, "override 'optim.lr': write it as key=value"),
    "missing shard": (["data.train={D}/{{000..003}}.tar"], {}, 3, "003.tar"),
    "empty shard list": (["data.train=[]"], {}, 3, "shard list is empty"),
    "nothing matches": (["data.train={D}/*.rat"], {}, 3, "*.rat"),
    "empty file": (["data.train={D}/empty.tar"], {}, 3, "empty.tar: empty file"),
    "web page": (["data.train={D}/page.tar"], {}, 3, "page.tar: not a tar (begins with"),
    "too few samples": (
        ["train.global_batch_size=64"],
        {},
        3,
        "holds 12 samples, fewer than one global batch of 64",
    ),
    "list column": (
        ["data.train={D}/list.csv", "data.image_column=filepth"],
        {},
        3,
        "did you mean 'filepath'?",
    ),
    "list of too few": (["data.train={D}/list.csv"], {}, 3, "holds 2 samples, fewer than one"),
    "two settings": (
        ["data.sources=[{shards: x.tar}]"],
        {},
        2,
        "data: set train or sources, not both",
    ),
    "source": (
        ["data.train=[]", "data.sources=[{shards: '{D}/empty.tar', name: web}]"],
        {},
        3,
        "web: no sample in 1 shards",
    ),
    "source key": (
        ["data.train=[]", "data.sources=[{shards: a.tar, wieght: 2}]"],
        {},
        2,
        "data.sources.0.wieght: unknown key; did you mean 'weight'?",
    ),
    "remote": (["data.train=https://h/a.tar"], {}, 3, "is remote; set data.cache_dir"),
    "pipe": (["data.train=pipe:cat x.tar"], {}, 3, "would run a shell command"),
    "empty folder": (["data.train={D}/hollow"], {}, 3, "hollow' holds no *.tar"),
    "neighbours": (
        ["data.hard_batches={neighbours: absent.npy}"],
        {},
        3,
        "data.hard_batches.neighbours: no such file: absent.npy",
    ),
    "caption member": (
        ["data.caption_keys=[cap]"],
        {},
        3,
        "data.caption_keys=['cap']: no sample of data.train has such a member",
    ),
    "image member": (["data.image_keys=[jxl]"], {}, 3, "data.image_keys=['jxl']"),
    "architecture": (["model.arch=ViT-B-33"], {}, 2, "unknown architecture 'ViT-B-33'"),
    "architecture file": (["model.arch=absent.json"], {}, 2, "absent.json"),
    "weights": (["model.pretrained={D}/absent.pt"], {}, 2, "model.pretrained: no such file"),
    "evaluation folder": (["data.eval.x={D}/absent"], {}, 3, "data.eval.x"),
    "run exists": (["run.name=old"], {}, 2, "old already holds a run; set run.resume=auto"),
    "other architecture": (
        ["run.name=old", "run.resume=auto"],
        {},
        4,
        "holds another architecture ('embed_dim'",
    ),
    "no valid checkpoint": (
        ["run.name=broken", "run.resume=auto"],
        {},
        4,
        "no checkpoint is valid",
    ),
    "world size": (
        [],
        {"WORLD_SIZE": "3"},
        2,
        "global_batch_size=8 is not divisible by the world size 3",
    ),
    "malformed world size": ([], {"WORLD_SIZE": "many"}, 2, "WORLD_SIZE='many'"),
    "variable": (
        ["data.train=${NOT_SET_AT_ALL}/a.tar"],
        {},
        2,
        "environment variable ${NOT_SET_AT_ALL} is not set",
    ),
}


def write_fake_run(run, embed_dim):
    """config.yaml and one checkpoint that verifies, without any tensor."""
    folder = run / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**ARCH, "embed_dim": embed_dim}})
    )
    path = folder / "open_clip_config.json"
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
    (folder / "manifest.json").write_text(json.dumps({"format": "clipkit-1", "files": files}))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad_input")
    write_shards(root, [4, 4, 4])
    (root / "empty.tar").touch()
    (root / "hollow").mkdir()
    (root / "list.csv").write_text("filepath,title\na.png,an a\nb.png,a b\n")
    (root / "page.tar").write_bytes(b"<html>not found</html>".ljust(2000))
    write_arch(root)
    (root / "run.yaml").write_text(
        f"run: {{dir: {root}/runs}}\nmodel: {{arch: arch.json}}\n"
        f"data: {{train: '{root}/{{000..002}}.tar'}}\nloss: {{kind: infonce}}\n"
        "train: {total_steps: 1, global_batch_size: 8}\n"
    )
    write_fake_run(root / "runs" / "old", embed_dim=9)
    (write_fake_run(root / "runs" / "broken", embed_dim=8) / "manifest.json").unlink()
    fake = root / "fake" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise ImportError('torch was imported')\n")
    return root


def environment(place):
    path = os.pathsep.join([str(place / "fake"), str(Path(__file__).resolve().parents[2])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def results(place):
    cases = {
        name: (
            [
                "train",
                str(place / "run.yaml"),
                *[
                    o.replace("{D}", str(place)).replace("{{", "{").replace("}}", "}")
                    for o in overrides
                ],
            ],
            env,
        )
        for name, (overrides, env, _, _) in CASES.items()
    }
    cases["good"] = (["train", str(place / "run.yaml"), "--check"], {})
    cases["good resume"] = (["train", str(place / "run.yaml"), "--check", "run.resume=auto"], {})
    cases["other ranks"] = (
        ["train", str(place / "run.yaml"), "optim.lrr=1"],
        {"WORLD_SIZE": "2", "RANK": "1"},
    )
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=environment(place),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_the_thing(results, name):
    _, _, expected_status, expected = CASES[name]
    status, out, err = results[name]
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("clipkit: ") and expected in lines[0]
    assert status == expected_status and out == ""


def test_the_config_without_a_mistake_passes(results):
    for name in ("good", "good resume"):
        status, out, err = results[name]
        assert status == 0 and out.endswith("run.yaml: ok\n"), err


def test_other_ranks_are_silent_but_fail_too(results):
    assert results["other ranks"] == [2, "", ""]


def test_as_a_process(place):
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", "train", str(place / "run.yaml"), "optim.lrr=1"],
        capture_output=True,
        text=True,
        env=environment(place),
        timeout=60,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'lr'" in done.stderr


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.train={D}/gone-{{0..9}}.tar", "gone-0.tar"),
        ("data.train={D}/hollow", "holds no *.tar"),
        ("train.global_batch_size=64", "holds 12 samples, fewer than"),
    ],
)
@pytest.mark.parametrize("mode", ["indexed", "streaming"])
def test_no_data_never_hangs(place, override, named, mode):
    if mode == "streaming" and "batch" in override:
        override, named = "data.workers=4", "3 shards cannot be dealt to 1 ranks x 4 workers"
    override = override.replace("{D}", str(place)).replace("{{", "{").replace("}}", "}")
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", "train", str(place / "run.yaml")]
        + [override, f"data.mode={mode}"],
        capture_output=True,
        text=True,
        env=environment(place),
        timeout=10,
    )
    assert done.returncode == 3 and named in done.stderr and done.stderr.count("\n") == 1


def test_the_fake_torch_is_live(place):
    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        capture_output=True,
        text=True,
        env=environment(place),
        timeout=60,
    )
    assert "torch was imported" in done.stderr
