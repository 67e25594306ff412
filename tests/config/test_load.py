"""Precedence, suggestions, and every mistake in one line that names it."""

import datetime

import pytest
import yaml

from clipkit.config.load import (
    apply_override,
    dump_config,
    expand_variables,
    load_config,
    read_yaml,
)
from clipkit.errors import ConfigError
from tests.fixtures_model import write_arch


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def message(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, "train: {total_steps: 10}\noptim: {lr: 0.01}\n")


def test_precedence_is_default_file_override(path):
    assert load_config(path).optim.beta1 == 0.9
    assert load_config(path).optim.lr == 0.01
    assert load_config(path, ["optim.lr=0.5"]).optim.lr == 0.5


def test_exponents_without_a_dot_are_numbers(path):
    assert load_config(path, ["optim.lr=1e-3"]).optim.lr == 1e-3
    assert (
        load_config(write(path.parent, "train: {total_steps: 1}\noptim: {lr: 3e-4}")).optim.lr
        == 3e-4
    )


def test_parts_are_completed_and_numbers_in_them_too(path):
    config = load_config(path, ["addons=[{kind: ema, decay: 1e-1}]", "loss.kind=siglip"])
    assert config.addons == ({"kind": "ema", "decay": 0.1},)
    assert config.loss == ({"kind": "siglip", "weight": 1.0, "mask_duplicates": False},)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learning_rate=1", "optim.learning_rate: unknown key"),
        ("optim.lrr=1", "did you mean 'lr'?"),
        ("optm.lr=1", "did you mean 'optim'?"),
        ("loss.kind=infonec", "loss.kind: unknown kind 'infonec'; did you mean 'infonce'?"),
        (
            "loss={kind: infonce, wieght: 2}",
            "loss.wieght: unknown key of kind 'infonce'; did you mean 'weight'?",
        ),
        ("addons=[{kind: em}]", "addons.0.kind: unknown kind 'em'; did you mean 'ema'?"),
        ("addons=[{kind: ema, decai: 1}]", "did you mean 'decay'?"),
        ("addons=[{kind: ema, decay: soon}]", "addons.0.decay"),
        ("addons=[{decay: 1}]", "needs a mapping with a 'kind'"),
        ("addons=[ema]", "addons.0"),
        ("eval.tasks=[{kind: zero_shot, data: digits}]", "'digits' is not in data.eval"),
        ("data.limits.max_pixel=3", "did you mean 'max_pixels'?"),
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr.x=1", "'optim.lr' is a value, not a section"),
        ("optim.lr", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("optim.lr=[", "not valid YAML"),
        ("run.name=2001-99-99", "not valid YAML"),
        ("optim=3", "optim"),
        ("train=null", "train"),
    ],
)
def test_mistakes_name_the_thing(path, override, expected):
    assert expected in message(path, override)


def test_list_items_by_index(tmp_path):
    path = write(
        tmp_path, "train: {total_steps: 1}\nloss: [{kind: infonce}, {kind: siglip, weight: 2}]\n"
    )
    config = load_config(path, ["loss.1.weight=0.5"])
    assert [part["weight"] for part in config.loss] == [1.0, 0.5]
    assert "'2' is no index of a list of 2" in message(path, "loss.2.weight=1")
    assert "'-1' is no index" in message(path, "loss.-1.weight=1")
    assert "loss.1.kind: unknown kind" in message(path, "loss.1.kind=nothing")


def test_override_opens_missing_and_empty_sections(tmp_path):
    path = write(tmp_path, "train:\n")
    config = load_config(path, ["train.total_steps=3", "data.limits.max_pixels=7"])
    assert (config.train.total_steps, config.data.limits.max_pixels) == (3, 7)


def test_override_value_may_hold_an_equals_sign():
    tree = {}
    apply_override(tree, "data.train=a=b.tar")
    assert tree == {"data": {"train": "a=b.tar"}}


def test_duplicate_keys_are_refused_at_any_depth(tmp_path):
    assert "line 3: key 'lr' is given twice" in message(
        write(tmp_path, "optim:\n  lr: 1\n  lr: 2\n")
    )
    assert "key 'run' is given twice" in message(write(tmp_path, "run: {}\nrun: {}\n"))


def test_anchors_and_merge_keys_are_plain_yaml(tmp_path):
    path = write(
        tmp_path,
        "train: {total_steps: 1}\nloss:\n- &a {kind: siglip, weight: 2}\n- {<<: *a, weight: 3}\n",
    )
    assert [part["weight"] for part in load_config(path).loss] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {total_steps: 1", "not valid YAML"),
        ("- 1\n", "a config is a mapping of sections"),
        ("just text", "a config is a mapping"),
        ("", "exactly one of total_steps and epochs"),
        ("? [1, 2]\n: 3\n", "a key must be plain text"),
        ("1: 2\n", "1"),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("run: {name: 2001-99-99}\n", "not valid YAML"),
        ("data: 3\ntrain: {total_steps: 1}\n", "data"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_malformed_files(tmp_path, text, expected):
    assert expected in message(write(tmp_path, text))


def test_unreadable_files(tmp_path):
    assert "no such config file" in message(tmp_path / "absent.yaml")
    assert "cannot be read" in message(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    assert "cannot be read" in message(tmp_path / "latin.yaml")


def test_variables_are_expanded_in_data_addons_and_run_dir_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", "/here")
    path = write(
        tmp_path,
        "run: {dir: '${PLACE}/runs'}\nmodel: {arch: '${PLACE}'}\nlog: {wandb_project: '${PLACE}'}\n"
        "data: {train: ['${PLACE}/a.tar'], eval: {x: '${PLACE}/x'}}\ntrain: {total_steps: 1}\n",
    )
    config = load_config(path)
    assert (config.run.dir, config.data.train, config.data.eval) == (
        "/here/runs",
        ("/here/a.tar",),
        {"x": "/here/x"},
    )
    assert (config.model.arch, config.log.wandb_project) == ("${PLACE}", "${PLACE}")


def test_variables_of_addons_are_expanded(monkeypatch):
    monkeypatch.setenv("PLACE", "/here")
    addons = [{"kind": "x", "memory": "${PLACE}/m", "k": 3}]
    assert expand_variables(addons, "addons") == [{"kind": "x", "memory": "/here/m", "k": 3}]


def test_an_unset_variable_of_an_addon_is_named(path, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = message(path, "addons=[{kind: ema, decay: '${NOT_THERE}'}]")
    assert "addons.0.decay" in text and "${NOT_THERE}" in text


def test_unset_variable_is_named_with_its_place(path, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = message(path, "data.train=[a.tar, '${NOT_THERE}/b.tar']")
    assert "data.train.1" in text and "${NOT_THERE}" in text
    assert "run.dir" in message(path, "run.dir=${NOT_THERE}")


def test_expand_variables_leaves_other_values_alone():
    assert expand_variables({"a": [1, None, "$HOME"]}, "data") == {"a": [1, None, "$HOME"]}


def test_architecture_json_is_looked_up_beside_the_config(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    write_arch(folder)
    path = write(folder, "train: {total_steps: 1}\nmodel: {arch: arch.json}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(path).model.arch == str(folder / "arch.json")
    write_arch(tmp_path, "other.json")
    assert load_config(path, ["model.arch=other.json"]).model.arch == str(tmp_path / "other.json")


def test_dump_is_complete_and_reads_back_the_same(path):
    config = load_config(path, ["addons=[{kind: ema}]"])
    again = path.parent / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    assert yaml.safe_load(again.read_text())["addons"] == [{"kind": "ema", "decay": 0.9999}]


def test_eval_task_is_named_after_its_data(path):
    config = load_config(
        path, ["data.eval.digits=/x", "eval.tasks=[{kind: zero_shot, data: digits}]"]
    )
    assert config.eval.tasks[0]["name"] == "digits"
    assert config.eval.tasks[0]["split"] == "test"


def test_read_yaml_is_safe_load(tmp_path):
    assert read_yaml(write(tmp_path, "a: 2001-02-03")) == {"a": datetime.date(2001, 2, 3)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.chunk_size=0", "train.chunk_size: 0 is no chunk size; give a whole number, auto"),
        ("train.chunk_size=all", "train.chunk_size: 'all' is no chunk size"),
        ("loss=siglip", "write loss.kind=siglip"),
        ("train.text_chunk_size=8", "train.text_chunk_size: set train.chunk_size too"),
        ("engine.loss_plan=ring", "engine.loss_plan"),
    ],
)
def test_large_batch_settings_name_their_remedy(path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(path, [override])
    assert message in str(error.value)


def test_a_compiled_tower_is_not_sharded(path) -> None:
    with pytest.raises(ConfigError, match="train.compile.*zero_stage=2"):
        load_config(path, ["train.compile=true", "engine.zero_stage=3"])
