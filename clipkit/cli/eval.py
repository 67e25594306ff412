"""`clipkit eval run|ls|validate|compare|report|gate|watch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.eval_compare import compare
from clipkit.cli.eval_gate import gate
from clipkit.cli.eval_report import report
from clipkit.cli.eval_sets import ls, validate
from clipkit.cli.eval_watch import watch
from clipkit.cli.on_ranks import run_on_ranks
from clipkit.cli.refine import (
    CalibrationOption,
    FusionOption,
    MemoryOption,
    RefineOption,
    RefineOptions,
    ShiftOption,
)
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from clipkit.data.eval_sets import EvalSet
    from clipkit.dist.group import World
    from clipkit.eval.suite import ModelFacts
    from clipkit.eval.tasks import Job
    from clipkit.retrieval.refinement import Refinement
    from clipkit.towers.dual import FeatureEncoder

app = typer.Typer(no_args_is_help=True, help="Evaluate checkpoints; compare, report, gate.")

Data = Annotated[
    list[Path], typer.Option(help="Evaluation set, or a folder of them; repeat for several.")
]
Tasks = Annotated[
    list[str],
    typer.Option(help="Kind, glob or YAML file; repeat. Without: each set's default task."),
]
Extensions = Annotated[
    list[str], typer.Option(help="Package whose tasks may be named, e.g. my_package; repeat.")
]
Split = Annotated[list[str], typer.Option(help="Folder or file prefix of the shards; repeat.")]
Out = Annotated[Path, typer.Option(help="Folder for results.")]
Arch = Annotated[
    str | None, typer.Option(help="open_clip architecture of a weights file or pretrained tag.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16, of the towers; scores are fp32.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images encoded at once per rank.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder of the feature cache; default: the user's cache.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no features on disk.")]
Force = Annotated[bool, typer.Option("--force", help="Compute finished results again.")]


def run(
    checkpoint: Annotated[
        list[str],
        typer.Option(help="Run, checkpoint or exported folder, weights file or tag; repeat."),
    ],
    data: Data,
    tasks: Tasks = [],  # noqa: B006  (typer reads the default)
    split: Split = ["test"],  # noqa: B006
    out: Out = Path("eval_results"),
    arch: Arch = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = 64,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
    extensions: Extensions = [],  # noqa: B006
    calibration: CalibrationOption = None,
    memory: MemoryOption = None,
    fusion: FusionOption = "head",
    refine: RefineOption = None,
    shift: ShiftOption = None,
) -> None:
    """Run tasks on checkpoints; each model is loaded once, each image embedded once.

    Results of refined features lie in a folder of their own, OUT/<checkpoint>+<refinements>/.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision '{precision}': choose fp32 or bf16")
    kept = None if no_cache else cache_folder(cache)
    options = RefineOptions(calibration, memory, fusion, refine, shift)
    settings = Settings(out, arch, precision, batch_size, kept, force)

    def work(world: World) -> None:
        jobs = plan_jobs(data, split, tasks, world, extensions)
        models = name_models(checkpoint, arch)
        writable(out)
        for place, facts in models:
            encoder = settings.load(place, world)
            refinements = options.build(place, encoder, arch)
            settings.evaluate(encoder, facts, jobs, world, refinements)

    run_on_ranks(work, device)


@dataclass(frozen=True)
class Settings:
    """How a command evaluates: what `run` and `watch` share."""

    out: Path
    arch: str | None = None
    precision: str = "fp32"
    batch_size: int = 64
    cache: Path | None = None
    force: bool = False

    def load(self, place: str, world: World) -> FeatureEncoder:
        """The model, and how long it took.

        Raises:
            CheckpointError: As `clipkit.loading.load_encoder`.
        """
        from clipkit.loading import load_encoder

        start = time.perf_counter()
        encoder = load_encoder(place, device=world.device, arch=self.arch, precision=self.precision)
        if world.is_main:
            typer.echo(f"{place}: loaded in {time.perf_counter() - start:.1f} s", err=True)
        return encoder

    def evaluate(
        self,
        encoder: FeatureEncoder,
        facts: ModelFacts,
        jobs: list[Job],
        world: World,
        refinements: Sequence[Refinement] = (),
    ) -> None:
        """Run all jobs on a loaded model and print its table."""
        from clipkit.cli.console import table_console
        from clipkit.eval.embed import Embedder
        from clipkit.eval.feature_cache import FeatureCache
        from clipkit.eval.suite import refined_facts, run_jobs, scored_calibrations
        from clipkit.eval.table import stored_table

        start = time.perf_counter()
        features = FeatureCache(self.cache) if self.cache else None
        embedder = Embedder(
            encoder,
            world,
            cache=features,
            batch_size=self.batch_size,
            progress=True,
            refinements=refinements,
        )
        facts = refined_facts(facts, refinements)
        found = []
        for result, fresh in run_jobs(jobs, embedder, facts, self.out, force=self.force):
            found.append(result)
            state = f"{result.data['seconds']:.1f} s" if fresh else "finished before"
            typer.echo(f"{result.dataset}: {result.kind}: {state}", err=True)
        if world.is_main:
            table_console().print(stored_table(found, facts.name))
            seconds = time.perf_counter() - start
            place = self.out / facts.name
            typer.echo(f"{facts.name}: evaluated in {seconds:.1f} s; results: {place}", err=True)
            for note in scored_calibrations(jobs, refinements):  # last: tables are long
                typer.echo(f"clipkit: warning: {note}", err=True)


def plan_jobs(
    data: list[Path],
    splits: list[str],
    tasks: list[str],
    world: World | None = None,
    extensions: list[str] = [],  # noqa: B006  (never changed)
) -> list[Job]:
    """Jobs of a command line, all data sets opened; says what a glob left out."""
    from clipkit.eval.tasks import plan

    jobs, notes = plan(sets_of(data, splits), tasks, tuple(extensions))
    for note in notes if world is None or world.is_main else ():
        typer.echo(note, err=True)
    if not jobs:
        raise ConfigError("nothing to run: no task fits the data sets below --data")
    return jobs


def sets_of(data: list[Path], splits: list[str]) -> list[EvalSet]:
    """Data sets below the roots, in every split that one of them has.

    Raises:
        DataError: A root holds nothing, or a split is nowhere.
    """
    from clipkit.data.eval_sets import find_sets
    from clipkit.errors import DataError

    found = []
    for root in data:
        per_split = {}
        for split in splits:
            try:
                per_split[split] = find_sets(root, split)
            except DataError:
                if len(splits) == 1:
                    raise
        if not per_split:
            raise DataError(f"evaluation set '{root}': no set with a split {' or '.join(splits)}")
        found += [place for places in per_split.values() for place in places]
    return list(dict.fromkeys(found))


def name_models(checkpoints: list[str], arch: str | None) -> list[tuple[str, ModelFacts]]:
    """Each checkpoint with the name of its results.

    Raises:
        CheckpointError: A path leads nowhere.
        ConfigError: Two checkpoints would share a name.
    """
    from clipkit.checkpoint.verify import checkpoint_step
    from clipkit.eval.suite import ModelFacts, checkpoint_facts
    from clipkit.loading import resolve

    named: dict[str, tuple[str, ModelFacts]] = {}
    for place in checkpoints:
        path = resolve(place, arch)
        if checkpoint_step(path) is not None:
            facts = checkpoint_facts(path)
        else:
            stem = path.stem if path.is_file() else str(place)
            name = path.name if path.is_dir() else f"{arch or 'model'}-{stem}".replace("/", "-")
            facts = ModelFacts(name, str(path), arch or name)
        if facts.name in named:
            raise ConfigError(f"--checkpoint {place}: another one is named '{facts.name}', too")
        named[facts.name] = (str(path), facts)
    return list(named.values())


def cache_folder(cache: Path | None) -> Path:
    """Where features are kept."""
    from clipkit.eval.feature_cache import default_folder

    return cache or default_folder()


def writable(out: Path) -> None:
    """Make a folder for results before any time is spent.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None


app.command("run")(run)
app.command("ls")(ls)
app.command("validate")(validate)
app.command("watch")(watch)
app.command("compare")(compare)
app.command("report")(report)
app.command("gate")(gate)
