"""`clipkit eval run|ls|validate|compare|report|gate|watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.eval_compare import compare
from clipkit.cli.eval_gate import gate
from clipkit.cli.eval_report import report
from clipkit.cli.eval_sets import ls, validate
from clipkit.cli.eval_watch import watch
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from clipkit.data.eval_sets import EvalSet
    from clipkit.dist.group import World
    from clipkit.eval.results import StoredResult
    from clipkit.eval.suite import ModelFacts
    from clipkit.eval.tasks import Job
    from clipkit.towers.dual import FeatureEncoder

app = typer.Typer(no_args_is_help=True, help="Evaluate checkpoints; compare, report, gate.")

Data = Annotated[
    list[Path], typer.Option(help="Evaluation set, or a folder of them; repeat for several.")
]
Tasks = Annotated[
    list[str],
    typer.Option(help="Kind, glob or YAML file; repeat. Without: each set's default task."),
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
) -> None:
    """Run tasks on checkpoints; each model is loaded once, each image embedded once."""
    import time

    from clipkit.dist import group
    from clipkit.loading import load_encoder

    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"--precision '{precision}': choose fp32 or bf16")
    jobs = plan_jobs(data, split, tasks)
    models = name_models(checkpoint, arch)
    writable(out)
    world = group.setup(device=device)
    try:
        for place, facts in models:
            start = time.perf_counter()
            encoder = load_encoder(place, device=world.device, arch=arch, precision=precision)
            loaded = time.perf_counter() - start
            evaluate_checkpoint(
                encoder,
                facts,
                jobs,
                world,
                out=out,
                batch_size=batch_size,
                cache=None if no_cache else cache_folder(cache),
                force=force,
            )
            if world.is_main:
                total = time.perf_counter() - start
                text = (
                    f"{facts.name}: loaded in {loaded:.1f} s, evaluated in {total - loaded:.1f} s"
                )
                typer.echo(text, err=True)
    finally:
        group.teardown()


def plan_jobs(data: list[Path], splits: list[str], tasks: list[str]) -> list[Job]:
    """Jobs of a command line, all data sets opened; says what a glob left out."""
    from rich.console import Console

    from clipkit.eval.tasks import plan

    jobs, notes = plan(sets_of(data, splits), tasks)
    for note in notes:
        Console(stderr=True).print(note, style="dim", markup=False, highlight=False, soft_wrap=True)
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
    from clipkit.checkpoint.verify import MANIFEST, checkpoint_step, find_checkpoint
    from clipkit.eval.suite import ModelFacts
    from clipkit.loading import is_export

    named: dict[str, tuple[str, ModelFacts]] = {}
    for place in checkpoints:
        path, step = Path(place), None
        if arch is not None or path.is_file():
            name = f"{arch or 'model'}-{path.stem if path.is_file() else place}".replace("/", "-")
        elif is_export(path) and checkpoint_step(path) is None:
            name = path.resolve().name
        else:
            folder = find_checkpoint(path) if not (path / MANIFEST).is_file() else path
            step = checkpoint_step(folder)
            name = f"{folder.resolve().parent.parent.name}-{folder.resolve().name}"
            place = str(folder)
        if name in named:
            raise ConfigError(f"--checkpoint {place}: another one is named '{name}', too")
        named[name] = (place, ModelFacts(name, place, arch or name, step))
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


def evaluate_checkpoint(
    encoder: FeatureEncoder,
    facts: ModelFacts,
    jobs: list[Job],
    world: World,
    *,
    out: Path,
    batch_size: int = 64,
    cache: Path | None = None,
    force: bool = False,
) -> list[StoredResult]:
    """Run all jobs on a loaded model and print its table."""
    from rich.console import Console

    from clipkit.cli.console import table_console
    from clipkit.eval.embed import Embedder
    from clipkit.eval.feature_cache import FeatureCache
    from clipkit.eval.suite import run_jobs
    from clipkit.eval.table import stored_table

    features = FeatureCache(cache) if cache else None
    embedder = Embedder(encoder, world, cache=features, batch_size=batch_size, progress=True)
    said = Console(stderr=True)
    found = []
    for result, fresh in run_jobs(jobs, embedder, facts, out, force=force):
        found.append(result)
        state = f"{result.data['seconds']:.1f} s" if fresh else "finished before"
        said.print(f"{result.dataset}: {result.kind}: {state}", highlight=False)
    if world.is_main:
        table_console().print(stored_table(found, facts.name))
        said.print(f"results: {out / facts.name}", highlight=False, soft_wrap=True)
    return found


app.command("run")(run)
app.command("ls")(ls)
app.command("validate")(validate)
app.command("watch")(watch)
app.command("compare")(compare)
app.command("report")(report)
app.command("gate")(gate)
