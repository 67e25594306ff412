"""Write scenes as shards: the same bytes for the same pictures, numbers and seed.

    OUT/train-00000.tar ...        png txt json; json: things, places, negatives, negative_tags
    OUT/test/0.tar                 the same, in CLIP_benchmark's layout, with selection.jsonl
    OUT/dataset_type.txt, scenes.json

Training and test scenes show the same kinds of things, but never the same two together.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from clipkit.data.shard_writer import write_shard
from clipkit.data.wds_write import write_folder
from clipkit.errors import DataError
from data_tools.questions import ask, write_questions
from data_tools.scenes.layout import draw_scene, place
from data_tools.scenes.things import CATEGORIES, choose_kinds, read_things
from data_tools.scenes.wording import ACROSS, RELATIONS, Claim, wrong_captions
from data_tools.staging import new_folder

PER_SHARD = 1000
TEST_SHARE = 0.2  # of all pairs of kinds
_TRIES = 100_000  # draws without a new test scene: there are too few pairs

Sample = dict[str, bytes]
Pictures = Mapping[str, Image.Image]


@dataclass(frozen=True)
class Settings:
    """What a folder of scenes is made with.

    Attributes:
        train, test: Scenes of each split.
        things: At most so many in a scene, 2 or 3; with 3, every other scene has three.
        kinds: Different things over all scenes.
        size: Side of a picture in pixels.
        seed: Draws everything.
        categories: Values of the json field "category" that are things.

    Raises:
        DataError: A number that makes no scenes.
    """

    train: int = 12_000
    test: int = 1000
    things: int = 3
    kinds: int = 200
    size: int = 64
    seed: int = 0
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self) -> None:
        least = {"train": 1, "test": 1, "things": 2, "size": 16, "kinds": self.things + 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise DataError(f"--{name} {getattr(self, name)}: choose at least {low}")
        if self.things > 3:
            raise DataError(f"--things {self.things}: a scene has 2 or 3 things")


def write_scenes(shards: Sequence[str], out: Path, settings: Settings) -> dict[str, int]:
    """Compose scenes from single pictures; `out` appears in one rename.

    Args:
        shards: Tars of single pictures, or patterns.
        out: Folder to create.
        settings: What to make.

    Returns:
        Number of train and test scenes, of kinds and of questions.

    Raises:
        DataError: `out` is there, the shards do not hold enough things, or there are too few pairs
            of kinds for so many different test scenes.
    """
    pictures = read_things(shards, settings.categories)
    kinds = choose_kinds(list(pictures), settings.kinds, settings.seed)
    with new_folder(out) as folder, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scenes", total=settings.train + settings.test)
        counts = _write(folder, pictures, kinds, settings, lambda: progress.advance(task))
        note = {"settings": asdict(settings), "kinds": kinds}
        (folder / "scenes.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    return {**counts, "kinds": len(kinds)}


def _write(
    out: Path, pictures: Pictures, kinds: list[str], settings: Settings, tick: Callable[[], None]
) -> dict[str, int]:
    """Write both splits; `tick` is called once a scene."""

    def samples(split: str) -> Iterator[Sample]:
        rng = random.Random(f"scenes {split} {settings.seed}")
        for claim in claims(split, kinds, settings):
            yield _sample(claim, pictures, kinds, settings.size, rng)
            tick()

    test = list(samples("test"))
    write_folder(out, "test", test, kind="retrieval", samples_per_shard=PER_SHARD)
    questions = [item for row, sample in enumerate(test) for item in _asked(f"s{row:07d}", sample)]
    write_questions(out / "test", questions)
    train = ((f"train-{row:07d}", sample) for row, sample in enumerate(samples("train")))
    for shard in range(-(-settings.train // PER_SHARD)):
        write_shard(out / f"train-{shard:05d}.tar", itertools.islice(train, PER_SHARD))
    return {"train": settings.train, "test": len(test), "questions": len(questions)}


def _asked(key: str, sample: Sample) -> list[dict[str, Any]]:
    meta = json.loads(sample["json"])
    return ask(key, sample, zip(meta["negatives"], meta["negative_tags"], strict=True))


def claims(split: str, kinds: Sequence[str], settings: Settings) -> Iterator[Claim]:
    """What the scenes of a split show, in random order.

    Every relation occurs equally often with every number of things, and either thing of a pair is
    equally often named first. No two test scenes show the same things.
    """
    rng = random.Random(f"claims {split} {settings.seed}")
    states = _states(settings.things)
    shown: set[frozenset[str]] = set()
    turn: list[tuple[str, str | None]] = []
    for _ in range(getattr(settings, split)):
        turn = turn or rng.sample(states, len(states))
        relation, both = turn.pop()
        count = 2 if both is None else 3
        for _ in range(_TRIES):
            things = tuple(rng.sample(kinds, count))
            fits = all(split_of(pair, settings.seed) == split for pair in _pairs(things))
            if fits and (split == "train" or frozenset(things) not in shown):
                break
        else:
            raise DataError(
                f"{settings.kinds} kinds make too few {split} scenes of {count} things: raise "
                f"--kinds or lower --test"
            )
        shown.add(frozenset(things))
        yield Claim(things, relation, both)


def split_of(pair: frozenset[str], seed: int) -> str:
    """The split whose scenes may show these two together."""
    drawn = random.Random(f"pair {seed} {' '.join(sorted(pair))}").random()
    return "test" if drawn < TEST_SHARE else "train"


def _states(things: int) -> list[tuple[str, str | None]]:
    """(relation, both) of the scenes; with three things as many of three as of two."""
    two: list[tuple[str, str | None]] = [(relation, None) for relation in RELATIONS]
    three: list[tuple[str, str | None]] = [(r, both) for r in RELATIONS for both in ACROSS[r]]
    return 2 * two + three if things == 3 else two


def _pairs(things: Sequence[str]) -> list[frozenset[str]]:
    return [frozenset(pair) for pair in itertools.combinations(things, 2)]


def _sample(
    claim: Claim, pictures: Pictures, kinds: list[str], size: int, rng: random.Random
) -> Sample:
    """One scene: extension -> bytes. Things and places are in order of mention."""
    spots = place(claim, rng)
    wrong = wrong_captions(claim, kinds, rng)
    meta = {
        "things": claim.things,
        "places": [[round(value, 4) for value in (s.x, s.y, s.size)] for s in spots],
        "negatives": [item.text for item in wrong],
        "negative_tags": [item.tag for item in wrong],
    }
    return {
        "png": draw_scene([pictures[name] for name in claim.things], spots, size, rng),
        "txt": claim.text.encode(),
        "json": json.dumps(meta).encode(),
    }
