"""`clipkit eval report RESULTS... --out report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipkit.errors import ConfigError


def report(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of results, or single result files.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    thumbnails: Annotated[
        bool, typer.Option(help="Show samples, read from the data sets where they still are.")
    ] = True,
) -> None:
    """Write one HTML page about results: summary, trends, confusions, hardest samples."""
    import shlex
    from datetime import datetime, timezone

    from clipkit.eval.report import write_report
    from clipkit.eval.results import read_results

    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file in it, e.g. {out}/report.html")
    found = [result for place in results for result in read_results(place)]
    words = ["clipkit", "eval", "report", *map(str, results), "--out", str(out)]
    words += [] if thumbnails else ["--no-thumbnails"]
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(
            found, out, command=shlex.join(words), date=date, thumbnails=thumbnails, progress=True
        )
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from None
    size = out.stat().st_size
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    count = f"{len(found)} result{'s' if len(found) != 1 else ''}"
    print(f"{out}: {count}, {shown}; open it in any browser")
