"""One sample from its members, or why not; collation."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from clipkit.data import decode as room
from clipkit.data.bad_samples import BadSample
from clipkit.data.captions import CaptionRule
from clipkit.data.decode import decode_image
from clipkit.data.samples import Sample, SampleReader, collate
from clipkit.data.transforms import Crop, TrainTransform
from clipkit.errors import ConfigError
from tests.fixtures_shards import image_bytes, noise_bytes, number_tokenizer, small_reader

PNG = image_bytes()
needs_simplejpeg = pytest.mark.skipif(room.simplejpeg is None, reason="needs simplejpeg")


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


THIN = encoded(Image.new("RGB", (1500, 1)))
NOISE = noise_bytes(1, side=40)


def rng(seed=0):
    return np.random.Generator(np.random.PCG64([seed, 1, 2]))


def views(**further):
    return {"image": TrainTransform((8, 8), (0.3, 1.0)), **further}


def test_a_sample():
    sample = small_reader().read({"png": PNG, "txt": b" caption 3\n"}, 7, rng())
    assert sample.images["image"].shape == (3, 8, 8) and sample.texts == {"text": ["caption 3"]}
    assert sample.id == 7 and sample.masks == {} and sample.meta == {}


def test_keys_in_order_of_preference():
    reader = SampleReader(views(), ("webp", "png"), ("cap", "txt"))
    assert reader.wanted == ("webp", "png", "cap", "txt")
    sample = reader.read(
        {"png": b"no image", "webp": PNG, "txt": b"second", "cap": b"first"}, 0, rng()
    )
    assert sample.texts["text"] == ["first"]


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ({"txt": b"a"}, "no_image"),
        ({"gif": PNG, "txt": b"a"}, "no_image"),
        ({"png": PNG}, "no_caption"),
        ({"png": PNG, "txt": b"\xff\xfe"}, "caption_not_utf8"),
        ({"png": PNG, "txt": b" \n"}, "empty_caption"),
        ({"png": b"", "txt": b"a"}, "unreadable_image"),
        ({"png": image_bytes(side=2), "txt": b"a" * 65_537}, "caption_too_long"),
        ({"png": THIN, "txt": b"a"}, "extreme_shape"),
    ],
)
def test_bad_samples_have_a_cause(members, cause):
    with pytest.raises(BadSample) as caught:
        small_reader().read(members, 0, rng())
    assert caught.value.cause == cause


def test_limits_reach_the_decoder():
    reader = SampleReader(views(), max_pixels=10)
    with pytest.raises(BadSample, match="8 x 8"):
        reader.read({"png": PNG, "txt": b"a"}, 0, rng())


def test_hooks_run_in_order_with_metadata_and_the_samples_generator():
    seen = []

    def first(sample, generator):
        seen.append((sample.meta, generator.random()))
        sample.texts["negative"] = ["caption 1", "caption 2"]
        return sample

    def second(sample, generator):
        seen.append(list(sample.texts))
        return sample

    reader = SampleReader(views(), hooks=(first, second))
    reader.read({"png": PNG, "txt": b"a", "json": b'{"source": "x"}'}, 0, rng())
    assert seen[0][0] == {"source": "x"} and seen[1] == ["text", "negative"]
    again = list(seen)
    seen.clear()
    reader.read({"png": PNG, "txt": b"a", "json": b'{"source": "x"}'}, 0, rng())
    assert seen == again


def test_hooks_see_all_captions_of_the_image():
    reader = SampleReader(views(), caption_keys=("1.txt", "2.txt"), hooks=(lambda s, _: s,))
    sample = reader.read({"png": PNG, "1.txt": b"a", "2.txt": b"b"}, 0, rng())
    assert sample.texts["text"] == ["a"] and sample.captions == ["a", "b"]


@pytest.mark.parametrize("meta", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_broken_metadata_is_no_metadata(meta):
    reader = SampleReader(views(), hooks=(lambda s, _: s,))
    assert reader.read({"png": PNG, "txt": b"a", "json": meta}, 0, rng()).meta == {}


def test_json_is_read_only_where_something_asks_for_it():
    assert "json" not in SampleReader(views()).wanted
    assert SampleReader(views(), hooks=(lambda s, _: s,)).wanted[-1] == "json"
    assert SampleReader(views(), caption_keys=("txt", "json.alt")).wanted[-2:] == ("txt", "json")


def test_key_and_json_captions():
    reader = SampleReader(views(), caption_keys=("json.alt.en",))
    sample = reader.read({"png": PNG, "json": b'{"alt": {"en": "a cat"}}'}, 0, rng(), "000/17")
    assert sample.texts == {"text": ["a cat"]} and sample.key == "000/17"


class TestViews:
    """Several crops of one image, decoded once."""

    MEMBERS = {"png": NOISE, "txt": b"a\nb\nc\nd\ne", "neg.png": noise_bytes(2, side=40)}

    def read(self, seed=0, **options):
        seen = []
        options = {
            "views": views(),
            "hooks": (lambda s, r: seen.append(r.random()) or s,),
        } | options
        sample = SampleReader(**options).read(self.MEMBERS, 0, rng(seed))
        return sample, seen

    def test_each_has_its_size_and_its_own_crop(self):
        small, twin = TrainTransform((4, 6), (0.2, 0.5), flip=0.5), TrainTransform((8, 8), (0.3, 1))
        sample, _ = self.read(views=views(small=small, twin=twin))
        assert {n: tuple(i.shape) for n, i in sample.images.items()} == {
            "image": (3, 8, 8),
            "small": (3, 4, 6),
            "twin": (3, 8, 8),
        }
        assert not torch.equal(sample.images["image"], sample.images["twin"])

    def test_decoded_once(self, monkeypatch):
        calls = []
        real = decode_image
        monkeypatch.setattr(
            "clipkit.data.samples.decode_image", lambda *a, **k: calls.append(1) or real(*a, **k)
        )
        self.read(views=views(a=TrainTransform((4, 4)), b=TrainTransform((6, 6))))
        assert len(calls) == 1

    def test_a_further_view_changes_nothing_else(self):
        lines = {"caption_rule": "random", "caption_lines": True}
        small, other = TrainTransform((4, 4), (0.2, 0.5)), TrainTransform((6, 6))
        for seed in range(8):
            plain, drawn = self.read(seed, **lines)
            one, drawn_one = self.read(seed, views=views(small=small), **lines)
            two, drawn_two = self.read(seed, views={"other": other, **views(small=small)}, **lines)
            assert plain.texts == one.texts == two.texts and drawn == drawn_one == drawn_two
            for a, b in ((plain, one), (one, two)):
                assert all(torch.equal(image, b.images[name]) for name, image in a.images.items())

    def test_views_of_equal_settings_and_the_caption_each_draw_from_their_own(self, monkeypatch):
        equal = TrainTransform((8, 8), (0.2, 0.9))
        sample, _ = self.read(views=views(a=equal, b=equal))
        assert not torch.equal(sample.images["a"], sample.images["b"])
        drawn = []
        monkeypatch.setattr(
            TrainTransform, "draw", lambda *a: drawn.append(a[-1].random()) or Crop(0, 0, 9, 9, 0)
        )
        monkeypatch.setattr(
            CaptionRule, "pick", lambda *a: drawn.append(a[-1]().random()) or "a caption"
        )
        self.read(views=views(a=equal, b=equal), image_members={"own": ("neg.png",)})
        assert len(drawn) == len(set(drawn)) == 5

    def test_the_draw_of_a_caption_moves_no_crop(self):
        first, drawn_first = self.read(caption_lines=True)
        other, drawn = self.read(caption_lines=True, caption_rule="random")
        assert torch.equal(first.images["image"], other.images["image"]) and drawn == drawn_first

    def test_one_view_and_one_caption_draw_what_the_transform_alone_draws(self):
        sample, drawn = self.read()
        generator = rng()
        image = decode_image(NOISE, max_pixels=10**6, max_bytes=10**6)
        assert torch.equal(sample.images["image"], views()["image"](image, generator))
        assert drawn == [generator.random()]

    def test_an_image_of_its_own(self):
        sample, _ = self.read(image_members={"negative": ("neg.jpg", "neg.png")})
        alone = SampleReader(views()).read({**self.MEMBERS, "png": NOISE}, 0, rng())
        assert torch.equal(sample.images["image"], alone.images["image"])
        assert sample.images["negative"].shape == (3, 8, 8)
        assert not torch.equal(sample.images["image"], sample.images["negative"])

    def test_an_image_of_its_own_that_is_missing(self):
        reader = SampleReader(views(), image_members={"negative": ("neg.jpg",)})
        assert "neg.jpg" in reader.wanted
        with pytest.raises(BadSample) as caught:
            reader.read({"png": PNG, "txt": b"a"}, 0, rng())
        assert caught.value.cause == "no_negative"

    @pytest.mark.parametrize(
        "options",
        [
            {"views": {"main": TrainTransform((8, 8))}},
            {"views": views(), "image_members": {"image": ("png",)}},
        ],
    )
    def test_names_that_clash_or_lack(self, options):
        with pytest.raises(ConfigError, match=r"data\.views"):
            SampleReader(**options)


@needs_simplejpeg
class TestScaled:
    PHOTO = encoded(
        Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        ).resize((400, 300), Image.Resampling.BICUBIC),
        "JPEG",
        quality=95,
    )

    def images(self, decode, further=(), exif="ignore"):
        reader = SampleReader(
            {"image": TrainTransform((64, 64), (0.3, 1.0), flip=0.5), **dict(further)},
            decode=decode,
            exif=exif,
        )
        members = {"jpg": self.PHOTO, "txt": b"a"}
        return [reader.read(members, 0, rng(s)).images for s in range(10)]

    def test_the_same_crops_as_exact(self):
        exact, scaled = ([i["image"].float() for i in self.images(d)] for d in ("exact", "scaled"))
        same = [float((e - s).abs().mean()) for e, s in zip(exact, scaled)]
        other = [float((e - s).abs().mean()) for e, s in zip(exact, scaled[1:])]
        assert min(same) > 0 and 4 * max(same) < min(other), "half a pixel off at most"

    def test_the_largest_need_of_all_views_counts(self, monkeypatch):
        shapes = []
        real = decode_image

        def spy(*args, **options):
            shapes.append(tuple(real(*args, **options).shape[1:]))
            return real(*args, **options)

        monkeypatch.setattr("clipkit.data.samples.decode_image", spy)
        self.images("scaled", {"tiny": TrainTransform((8, 8))})
        assert all(h < 300 for h, _ in shapes)
        for large in ((290, 8), (8, 390)):
            shapes.clear()
            self.images("scaled", {"large": TrainTransform(large)})
            assert set(shapes) == {(300, 400)}

    def test_a_png_is_read_as_ever(self):
        members = {"png": NOISE, "txt": b"a"}
        exact, scaled = (
            SampleReader(views(), decode=d).read(members, 0, rng()).images["image"]
            for d in ("exact", "scaled")
        )
        assert torch.equal(exact, scaled)

    def test_too_large_and_cut_ones_are_bad_all_the_same(self):
        for data, cause in ((self.PHOTO[:-2], "unreadable_image"), (self.PHOTO, "too_many_pixels")):
            reader = SampleReader(
                views(), decode="scaled", max_pixels=10**6 if cause[0] == "u" else 1000
            )
            with pytest.raises(BadSample) as caught:
                reader.read({"jpg": data, "txt": b"a"}, 0, rng())
            assert caught.value.cause == cause


def test_scaled_is_refused_at_once_without_its_library(monkeypatch):
    monkeypatch.setattr(room, "simplejpeg", None)
    with pytest.raises(ConfigError, match="pip install simplejpeg"):
        SampleReader(views(), decode="scaled")


def test_exif_reaches_the_decoder():
    image = Image.new("RGB", (16, 8), (255, 0, 0))
    image.paste((0, 0, 255), (8, 0, 16, 8))  # red left, blue right
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn to the right: red above
    data = {"jpg": encoded(image, "JPEG", quality=95, exif=exif.tobytes()), "txt": b"a"}
    whole = {"image": TrainTransform((8, 8), (1.0, 1.0), (0.1, 10.0))}
    up = SampleReader(whole, exif="apply").read(data, 0, rng()).images["image"].float()
    assert up[0, 0].mean() > 200 > 60 > up[0, -1].mean()
    left = SampleReader(whole).read(data, 0, rng()).images["image"].float()
    assert left[0, :, 0].mean() > 200 > 60 > left[0, :, -1].mean()


def test_pickled_to_workers():
    options = {"caption_rule": "weighted", "caption_weights": (1.0,), "exif": "apply"}
    reader = SampleReader(views(small=TrainTransform((4, 4))), **options)
    assert pickle.loads(pickle.dumps(reader)) == reader  # noqa: S301
    assert pickle.loads(pickle.dumps(reader)).captions == reader.captions  # noqa: S301


def test_default_reading_is_pinned():
    """Seeds mean the same crop for ever: a change here breaks every run that is resumed."""
    sample = SampleReader({"image": TrainTransform((8, 8), (0.3, 0.6), flip=0.5)}).read(
        {"png": NOISE, "txt": b"a"}, 0, rng(3)
    )
    image = decode_image(NOISE, max_pixels=10**6, max_bytes=10**6)
    expected = tv.resized_crop(image, 10, 2, 25, 28, [8, 8], InterpolationMode.BICUBIC, True)
    assert torch.equal(sample.images["image"], expected.flip(-1))


def test_collate_stacks_everything_by_sample():
    samples = [
        Sample(
            {"image": torch.full((3, 2, 2), i, dtype=torch.uint8)},
            {"text": [f"caption {i}"], "negative": [f"caption {i}0", f"caption {i}1"]},
            {"negative": [True, i == 1]},
            {"score": torch.tensor([float(i)])},
            id=i + 10,
        )
        for i in range(3)
    ]
    batch = collate(samples, number_tokenizer)
    assert batch.images["image"][:, 0, 0, 0].tolist() == [0, 1, 2] and batch.ids.tolist() == [
        10,
        11,
        12,
    ]
    assert batch.texts["text"].tolist() == [[[0]], [[1]], [[2]]]
    assert batch.texts["negative"].tolist() == [[[0], [1]], [[10], [11]], [[20], [21]]]
    assert batch.masks["negative"].tolist() == [[True, False], [True, True], [True, False]]
    assert batch.extras["score"].shape == (3, 1)


def test_batches_are_in_hwc_memory_whatever_the_samples_are():
    image = torch.arange(3 * 4 * 5).to(torch.uint8).view(3, 4, 5)
    hwc = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for images in ([hwc, hwc], [image, hwc]):
        batch = collate([Sample({"image": i}, {"text": ["a 1"]}) for i in images], number_tokenizer)
        stacked = batch.images["image"]
        assert stacked.dtype == torch.uint8 and torch.equal(stacked, torch.stack([image, image]))
        assert stacked.is_contiguous(memory_format=torch.channels_last)


class _One(torch.utils.data.Dataset):
    def __getitem__(self, index):
        image = torch.full((3, 4, 5), 7, dtype=torch.uint8)
        batch = collate([Sample({"image": image}, {"text": ["a 1"]})], number_tokenizer)
        return batch, batch.images["image"].is_shared()


def test_a_loader_process_writes_images_into_shared_memory():
    loader = DataLoader(_One(), batch_size=None, sampler=[0], num_workers=1)
    batch, shared = next(iter(loader))
    assert shared and (batch.images["image"] == 7).all()
