"""Settings of the data: where samples come from, in which order, and what is made of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipkit.config.section import Section

Range = tuple[float, float]
_STREAMING_ONLY = ("virtual_epoch", "allow_pipe")
_INDEXED_ONLY = ("hard_batches", "sources")


class SampleLimits(Section):
    """Bounds on what one sample may be; beyond them it is a bad sample, never a crash."""

    max_pixels: int = Field(50_000_000, gt=0, description="Width x height of an image.")
    max_bytes: int = Field(50_000_000, gt=0, description="Bytes of one member.")


class SourceSection(Section):
    """One data set of a mixture."""

    shards: tuple[str, ...] = Field(description="Patterns as in data.train.")
    weight: float | None = Field(
        None, gt=0, description="Share of the draws, relative; null on all: by size."
    )
    name: str | None = Field(None, description="For messages; null: its place in the list.")

    @field_validator("shards", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ViewSection(Section):
    """A further view of each image: another crop, of its own size. Unset: as the main view."""

    size: int | None = Field(None, gt=0, description="Side in pixels; null: the model's.")
    crop_scale: Range | None = Field(None, description="Area range of the crop.")
    crop_ratio: Range | None = Field(None, description="Aspect range of the crop.")
    flip: float | None = Field(None, ge=0, le=1, description="Chance of a horizontal flip.")


class HardBatchesSection(Section):
    """Samples meet their nearest neighbours in a batch."""

    neighbours: str = Field(
        description=".npy of (samples, k) int64: ids of each sample's neighbours, -1: none."
    )
    group: int = Field(4, ge=2, description="Samples placed together.")
    batches: int = Field(16, ge=2, description="Global batches within which samples move.")


class DataSection(Section):
    """Shards, order and transforms. ${VARIABLES} are expanded in every string."""

    train: tuple[str, ...] = Field(
        (),
        description="Tar shards (paths, folders, globs, {000..123} braces, URLs), "
        "or .csv/.tsv/.parquet lists of image files.",
    )
    sources: tuple[SourceSection, ...] = Field(
        (), description="Instead of train: a mixture of {shards, weight, name}."
    )
    eval: dict[str, str] = Field(
        {}, description="Name -> folder in CLIP_benchmark's webdataset layout."
    )
    mode: Literal["indexed", "streaming"] = Field(
        "indexed", description="indexed: exact order and resume; streaming: webdataset's pipeline."
    )
    image_keys: tuple[str, ...] = Field(
        ("jpg", "jpeg", "png", "webp"),
        description="Members that hold the image; first that is there.",
    )
    caption_keys: tuple[str, ...] = Field(
        ("txt",), description="Members that hold captions, or json.<field>."
    )
    caption_rule: Literal["first", "random", "weighted"] = Field(
        "first", description="Which of a sample's captions is drawn; weighted: by caption_weights."
    )
    caption_weights: tuple[float, ...] = Field(
        (), description="caption_rule=weighted: one weight per caption key."
    )
    caption_lines: bool = Field(False, description="A text member holds one caption a line.")
    image_members: dict[str, tuple[str, ...]] = Field(
        {},
        description="Further images of a sample: view name -> members, e.g. {negative: [neg.jpg]}.",
    )
    views: dict[str, ViewSection] = Field(
        {}, description="Further views of the image: name -> {size, crop_scale, crop_ratio, flip}."
    )
    image_column: str = Field("filepath", description="Lists of files: column of the image path.")
    caption_columns: tuple[str, ...] = Field(
        ("title",), description="Lists of files: columns of captions."
    )
    image_root: str | None = Field(
        None, description="Lists of files: folder the paths start from; null: the list's own."
    )
    table_separator: str | None = Field(
        None, description="Lists of files: between columns; null: by the file's suffix."
    )
    decode: Literal["exact", "scaled"] = Field(
        "exact", description="scaled: JPEGs are decoded at a smaller size, faster, not pixel-exact."
    )
    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="Orientation in a photograph's EXIF data."
    )
    workers: int = Field(2, ge=0, description="Loader processes per rank.")
    token_cache: int = Field(
        0, ge=0, description="Captions whose tokens each loader process remembers; 0: none."
    )
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Share of unusable or missing samples that stops the run."
    )
    crop_scale: Range = Field((0.9, 1.0), description="Area range of the random resized crop.")
    crop_ratio: Range = Field((0.75, 4 / 3), description="Aspect range of the crop.")
    flip: float = Field(0.0, ge=0, le=1, description="Chance of a horizontal flip.")
    streams: int | None = Field(
        None, gt=0, description="Canonical streams of the order; null: gcd(batch, 64)."
    )
    window: int = Field(4096, gt=0, description="Samples per shuffle window of a stream.")
    hard_batches: HardBatchesSection | None = Field(
        None, description="{neighbours, group, batches}: similar samples meet in a batch."
    )
    shuffle_buffer: int = Field(2000, gt=0, description="streaming: samples held for shuffling.")
    virtual_epoch: int | None = Field(
        None, gt=0, description="streaming: samples per virtual epoch; resume is quick at its ends."
    )
    allow_pipe: bool = Field(False, description="streaming: pipe: URLs may run shell commands.")
    cache_dir: str | None = Field(
        None, description="Folder of copies of remote shards; indexed mode reads URLs through it."
    )
    cache_gb: float = Field(50.0, gt=0, description="Bound of the copies; the oldest used go.")
    retries: int = Field(5, ge=0, description="Further tries of a dropped download.")
    limits: SampleLimits = SampleLimits()

    @field_validator("train", "image_keys", "caption_keys", "caption_columns", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> DataSection:
        if self.train and self.sources:
            raise ValueError("data: set train or sources, not both")
        self._check_mode()
        weighted = [s for s in self.sources if s.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            raise ValueError("data.sources: give every source a weight, or none (then by size)")
        names = [s.name for s in self.sources if s.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("data.sources: two sources have the same name")
        self._check_captions()
        for name in (*self.views, *self.image_members):
            if name == "image" or (name in self.views and name in self.image_members):
                raise ValueError(f"data.views: the name '{name}' is taken; choose another")
        _check_crop(self.crop_scale, self.crop_ratio, "data")
        for name, view in self.views.items():
            _check_crop(
                view.crop_scale or self.crop_scale,
                view.crop_ratio or self.crop_ratio,
                f"data.views.{name}",
            )
        return self

    def _check_mode(self) -> None:
        """A setting of the other mode would do nothing."""
        streaming = self.mode == "streaming"
        for name in _INDEXED_ONLY if streaming else _STREAMING_ONLY:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                other = "indexed" if streaming else "streaming"
                raise ValueError(
                    f"data.{name}: has no effect with data.mode={self.mode}; "
                    f"remove it or set data.mode={other}"
                )

    def _check_captions(self) -> None:
        weighted = self.caption_rule == "weighted"
        if weighted and len(self.caption_weights) != len(self.caption_keys):
            raise ValueError(
                f"data.caption_weights: {len(self.caption_weights)} weights for "
                f"{len(self.caption_keys)} caption keys; give one for each"
            )
        if self.caption_weights and not weighted:
            raise ValueError("data.caption_weights: set data.caption_rule=weighted, or remove them")
        if any(w <= 0 for w in self.caption_weights):
            raise ValueError("data.caption_weights: every weight must be greater than 0")


def _check_crop(scale: Range, ratio: Range, where: str) -> None:
    for (low, high), name in ((scale, "crop_scale"), (ratio, "crop_ratio")):
        if not 0 < low <= high:
            raise ValueError(f"{where}.{name}: needs 0 < low <= high, got [{low}, {high}]")
    if scale[1] > 1:
        raise ValueError(f"{where}.crop_scale: an area share cannot exceed 1, got {scale[1]}")
