"""The command line of ``mbcl synthetic``. The computation is imported lazily, so that ``--help`` stays fast."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mbcl.cli.parser import option_values
from mbcl.errors import ConfigError

if TYPE_CHECKING:
    from mbcl.io.store import Store
    from mbcl.synthetic.records import Outcome

WriteReport = Callable[["Store", "Outcome"], None]
SAMPLERS = ("fixed", "shuffle", "full", "all_batches", "osgd_exhaustive", "spectral")


def add_synthetic(commands: Any, write_report: WriteReport) -> None:
    """Add ``synthetic`` to the commands. ``write_report`` writes the outcome into a folder: it is a layer above."""
    synthetic = commands.add_parser(
        "synthetic",
        help="compare samplers with the known optimum, by direct optimisation of points on a sphere",
        description="Move N points on a sphere by plain SGD on the CLIP loss (no temperature) of the batches that "
        "samplers choose, all from the same starting points, and compare the results with the optimum. The output is "
        "curves against steps, updates and samples seen, final Gram matrices, a table, and a page with all of them.",
    )
    add = synthetic.option
    add("--n", "N", "number of samples", 8)
    add("--dim", "D", "dimensions (default: 2 N; the published study has 2 N and N / 2)", type=int)
    add("--batch-size", "B", "one or several batch sizes (default: 2)", type=int, nargs="+")
    add("--steps", "N", "steps of every method", 2000)
    samplers = "NAME or NAME:KEY=VALUE,KEY=VALUE, see `mbcl list samplers`, or published names: f s full NcB osgd_NcB "
    add("--samplers", "SPEC", f"{samplers}sc_even (default: {' '.join(SAMPLERS)})", nargs="+")
    synthetic.plugins()
    add("--seeds", "N", "number of seeds", 5)
    add("--first-seed", "N", "the first of the seeds", 0)
    add("--lr", "RATE", "learning rate of SGD", 0.5)
    accumulate = "one update per step, on the sum or mean of its batches' losses"
    add("--accumulate", None, accumulate, choices=("sum", "mean"))
    synthetic.flag("--equal-init", "u and v of a sample start at the same point")
    add("--log-every", "N", "steps between points of a curve", 100)
    points = "log osgd_exhaustive after the first update of a step, as the published program does, instead of the last"
    synthetic.flag("--published-points", points)
    add("--restarts", "N", "where no optimum is known: random restarts of the search for the least loss", 16)
    synthetic.flag("--overwrite", "replace an existing synthetic study in DIR")
    add("--out", "DIR", "output folder", "results/synthetic-study")
    synthetic.set_defaults(batch_size=[2], samplers=list(SAMPLERS))
    synthetic.set_defaults(run=lambda arguments: _synthetic(arguments, write_report))


def _synthetic(arguments: argparse.Namespace, write_report: WriteReport) -> int:
    from mbcl.config.sampler_spec import parse_spec
    from mbcl.console.stages import Stages
    from mbcl.functional import check_count
    from mbcl.io.store import open_store
    from mbcl.synthetic.settings import MAX_SEEDS, Settings
    from mbcl.synthetic.study import run
    from mbcl.synthetic.table import show

    first = check_count("--first-seed", arguments.first_seed, least=0)
    if check_count("--seeds", arguments.seeds) > MAX_SEEDS:
        raise ConfigError(f"--seeds {arguments.seeds}: allowed are at most {MAX_SEEDS:,}")
    if first + arguments.seeds > 2**63:
        raise ConfigError(
            f"--first-seed must be at most 2^63 - {arguments.seeds}, so that all seeds are, found {first}"
        )
    if arguments.dim == 1:
        raise ConfigError("--dim must be at least 2, found 1: a point on a line has two directions, so none can move")
    names = {parse_spec(text).name for text in arguments.samplers}
    if arguments.published_points and "osgd_exhaustive" not in names:
        raise ConfigError("--published-points is about osgd_exhaustive, which is not among --samplers")
    own = ("dim", "batch_size", "samplers", "seeds", "first_seed", "overwrite", "out")
    settings = Settings(
        **option_values(arguments, *own),
        dim=2 * arguments.n if arguments.dim is None else arguments.dim,
        batch_sizes=tuple(arguments.batch_size),
        samplers=tuple(arguments.samplers),
        seeds=tuple(range(first, first + arguments.seeds)),
    )
    store = open_store(arguments.out)
    _check_free(store, arguments.overwrite)
    _check_writable(store)
    with Stages() as stages:
        outcome = run(settings, progress=stages)
        stages.begin("writing")
        if arguments.overwrite:
            store.delete("plots")  # stale figures of methods that are no longer in the study
        write_report(store, outcome)
    show(outcome)
    sys.stdout.write(f"page: {store.uri}/report.html\n")
    return 0


def _check_writable(store: Store) -> None:
    """Refuse a local folder that cannot be written, before the study takes hours (fail fast)."""
    from mbcl.io.store import LocalStore

    if isinstance(store, LocalStore):
        existing = next(folder for folder in (store.folder, *store.folder.parents) if folder.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"{store.uri}: cannot be written; choose another --out")


def _check_free(store: Store, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it holds a synthetic study that may be replaced."""
    from mbcl.synthetic.records import RECORD

    files = store.list()
    if RECORD in files and not overwrite:
        raise ConfigError(f"{store.uri}: holds a synthetic study already; add --overwrite, or choose another --out")
    if files and RECORD not in files:
        raise ConfigError(f"{store.uri}: holds other files ({files[0]}); choose another --out")
