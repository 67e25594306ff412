"""A subset gives the images it names, and is known apart from every other."""

from clipkit.data.wds_folder import open_folder
from clipkit.eval.subset import Subset
from tests.fixtures_encoder import COLORS, write_color_set


def test_images_labels_and_keys_stand_in_the_subsets_order(tmp_path):
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    folder = open_folder(write_color_set(tmp_path, labels))
    subset = Subset(folder, (6, 1, 3))
    assert subset.labels() == [2, 1, 3] and subset.keys == ["0006", "0001", "0003"]
    colors = [image.getpixel((0, 0)) for image in subset.images(0, 3)]
    assert colors == [list(COLORS.values())[c] for c in (2, 1, 3)]
    assert [i.getpixel((0, 0)) for i in subset.images(1, 2)] == colors[1:2]
    assert len(subset) == 3


def test_draws_are_seeded_and_without_repeats(tmp_path):
    folder = open_folder(write_color_set(tmp_path, [0] * 30))
    first = Subset.draw(folder, 10, 0)
    assert first == Subset.draw(folder, 10, 0) and len(set(first.indices)) == 10
    assert first != Subset.draw(folder, 10, 1)
    assert sorted(Subset.draw(folder, 99, 0).indices) == list(range(30))


def test_identities_tell_subsets_apart(tmp_path):
    folder = open_folder(write_color_set(tmp_path, [0] * 6))
    subsets = [Subset(folder, (0, 1)), Subset(folder, (1, 0)), Subset(folder, (0, 1, 2))]
    for name in ("place", "identity"):
        names = {getattr(s, name) for s in subsets} | {getattr(folder, name)}
        assert len(names) == 4
    assert Subset(folder, (0, 1)).identity == subsets[0].identity
