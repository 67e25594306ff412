"""Settings of the data that must fit each other."""

import re

import pytest
from pydantic import ValidationError

from clipkit.config.data_section import DataSection
from clipkit.config.load import expand_variables, load_config
from clipkit.config.schema import RunConfig
from clipkit.errors import ConfigError

SOURCES = [{"shards": "a.tar"}, {"shards": ["b.tar", "c.tar"]}]


def weighted(*weights):
    return [{**source, "weight": w} for source, w in zip(SOURCES, weights)]


def test_a_pattern_may_stand_without_a_list():
    data = DataSection(train="a.tar", image_keys="png", caption_keys="txt", caption_columns="t")
    assert data.train == ("a.tar",) and data.caption_columns == ("t",)
    assert data.image_keys == ("png",) and data.caption_keys == ("txt",)
    assert DataSection(sources=SOURCES).sources[0].shards == ("a.tar",)


def test_every_setting_is_described():
    fields = {**DataSection.model_fields}
    del fields["limits"]
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "a", "sources": SOURCES}, "data: set train or sources, not both"),
        ({"sources": SOURCES[:1] + weighted(1, 2)[1:]}, "every source a weight, or none"),
        ({"sources": weighted(0, 1)}, "greater than 0"),
        ({"sources": [{**s, "name": "x"} for s in SOURCES]}, "same name"),
        ({"sources": SOURCES, "mode": "streaming"}, r"data.sources: .*data.mode=indexed"),
        ({"hard_batches": {"neighbours": "a"}, "mode": "streaming"}, r"data.mode=indexed"),
        ({"hard_batches": {"neighbours": "a", "batches": 1}}, "greater than or equal to 2"),
        ({"virtual_epoch": 100}, r"data.virtual_epoch: .*data.mode=streaming"),
        ({"allow_pipe": True}, r"data.allow_pipe: .*data.mode=streaming"),
        ({"caption_rule": "weighted"}, "0 weights for 1 caption keys"),
        ({"caption_weights": [1]}, "set data.caption_rule=weighted"),
        ({"caption_rule": "weighted", "caption_weights": [0]}, "greater than 0"),
        ({"views": {"image": {}}}, "the name 'image' is taken"),
        ({"views": {"a": {}}, "image_members": {"a": ["jpg"]}}, "the name 'a' is taken"),
        ({"views": {"a": {"crop_scale": [0.5, 2]}}}, "data.views.a.crop_scale: an area share"),
        ({"views": {"a": {"crop_scale": [0.5, 0.1]}}}, "data.views.a.crop_scale: needs 0 < low"),
        ({"crop_ratio": [0, 1]}, "data.crop_ratio: needs 0 < low"),
        ({"decode": "fast"}, "'exact' or 'scaled'"),
        ({"cache_gb": 0}, "greater than 0"),
    ],
)
def test_refused(data, message):
    with pytest.raises(ValidationError) as caught:
        DataSection.model_validate(data)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_tuning_of_the_other_mode_is_no_mistake():
    DataSection(mode="streaming", streams=4, window=8)
    DataSection(shuffle_buffer=10)


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        ({"sources": SOURCES}, "data.sources has epochs of its own"),
        ({"sources": SOURCES[:1]}, ""),
        ({"mode": "streaming"}, "data.virtual_epoch"),
        ({"mode": "streaming", "virtual_epoch": 512}, ""),
    ],
)
def test_epochs_need_a_length(data, refused):
    tree = {"train": {"epochs": 2}, "data": data}
    if not refused:
        assert RunConfig.model_validate(tree).train.epochs == 2
        return
    with pytest.raises(ValidationError, match=refused):
        RunConfig.model_validate(tree)


def test_variables_in_sources_are_folders_not_patterns(monkeypatch):
    monkeypatch.setenv("HERE", "/d[1]")
    tree = {"sources": [{"shards": ["${HERE}/*.tar"], "name": "${HERE}"}], "cache_dir": "${HERE}/c"}
    assert expand_variables(tree, "data") == {
        "sources": [{"shards": ["/d[[]1]/*.tar"], "name": "/d[1]"}],
        "cache_dir": "/d[1]/c",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[{shard: a.tar}]", "data.sources.0.*shards"),
        ("data.sources=[{shards: a, wait: 1}]", "did you mean 'weight'"),
        ("data.views={small: {sizes: 3}}", "data.views.small.sizes.*did you mean 'size'"),
        ("data.crop_scale=[3, 2]", r"yaml: data.crop_scale: needs"),
    ],
)
def test_the_message_names_the_place(tmp_path, override, message):
    path = tmp_path / "run.yaml"
    path.write_text("train: {total_steps: 1}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])
