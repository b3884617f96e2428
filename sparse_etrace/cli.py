"""The command line: `sparse-etrace demo worm|events|traffic|spikes|eye`, `inspect FILE`, `convert IN OUT`, `info`."""

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import jax

from . import datasets, demo, demo_events, demo_eye, demo_spikes, demo_traffic
from ._files import SEPARATORS, read_graph, write_graph
from ._graph import sorting
from ._graph.columns import GUESS
from ._graph.graph import Graph
from ._graph.summary import inspect_graph
from ._kernels import native
from ._learner import LEARNERS, Learner
from ._report.costs import LearnerCosts, learner_costs
from ._text import shown

DATA_SETS: dict[str, Callable[[], Graph]] = {
    "worm": datasets.worm,
    "fly_eye": datasets.fly_eye,
    "mushroom_body": datasets.mushroom_body,
}
NUMBERED = ("SnAp", "Bridged", "TBPTT", "BPTT")
MOST = 2**31 - 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _seed(text: str) -> int:
    return _whole(text, 0)


def _batch(text: str) -> int:
    return _whole(text, 1)


def _size(text: str) -> int:
    return _whole(text, 1, 2**63 - 1)


def _whole(text: str, least: int, most: int = MOST) -> int:
    # So many digits are more, whatever they are; Python reads no more than 4300.
    if not text.isdecimal() or len(text) > 100 or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text[:100]!r}.")
    return int(text)


def _learner(text: str) -> tuple[Learner, tuple[int, ...]]:
    """A learner by its name, and steps to plan for: `SnAp-3`, `BPTT-1000`."""
    name, dash, number = text.partition("-")
    if name not in LEARNERS or (dash and name not in NUMBERED):
        numbered = ", ".join(f"{name}-NUMBER" for name in NUMBERED)
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(LEARNERS)}, {numbered}, got {text!r}.")
    given = [_whole(number, 1)] if dash else []
    own = [] if name == "BPTT" else given
    return LEARNERS[name]("state", *own), (*given, 100)[:1] if name == "BPTT" else (16,)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparse-etrace", description="Train recurrent networks online, on the synapses that exist.")
    parser.add_argument("--version", action="version", version=version("sparse-etrace"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    show = commands.add_parser("demo", help="train a real network and save figures and numbers")
    show.add_argument(
        "name",
        choices=["worm", "events", "traffic", "spikes", "eye"],
        help="worm: the connectome of C. elegans learns MNIST-1D; events: pairs of nodes that meet, and what they "
        "remember; traffic: speeds on the roads of a city, of which --data has the file; spikes: units that count cues "
        "and remember them until they are asked; eye: the visual system of the fly, which learns where patterns move",
    )
    show.add_argument("--quick", action="store_true", help="a short form: about a minute")
    show.add_argument("--data", type=Path, help="traffic: the file metr_la_week.npz; se.datasets.traffic says more")
    show.add_argument("--exact", action="store_true", help="worm: by RTRL as well, an hour (quick: ten minutes)")
    show.add_argument("--radius", type=_seed, help="eye: columns from the middle to the edge (default: 15; quick: 4)")
    show.add_argument("--out", type=Path, default=Path("results"), help="folder for the results (default: results)")
    show.add_argument("--seed", type=_seed, default=0, help="of weights and batches (default: 0)")
    show = commands.add_parser("inspect", help="what a graph is, and what each learner would cost on it")
    show.add_argument("file", metavar="FILE", help=f"a graph file, or one of {', '.join(DATA_SETS)}")
    show.add_argument("--batch", type=_batch, default=1, help="batch elements (default: 1)")
    show.add_argument("--devices", type=_batch, default=1, help="devices to part it onto (default: 1)")
    show.add_argument("--learner", type=_learner, action="append", help="such as D_RTRL or SnAp-3; may be repeated")
    _add_columns(show)
    show = commands.add_parser("convert", help="write a graph file in another format, all digits of its weights kept")
    show.add_argument("file", metavar="IN", help=f"a graph file, or one of {', '.join(DATA_SETS)}")
    show.add_argument("out", metavar="OUT", type=Path, help="the file to write; its suffix says the format")
    _add_columns(show)
    show.add_argument("--to", help="format of OUT, whatever its suffix")
    commands.add_parser("info", help="versions, devices, and the kernels in use")
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    for name, what in (("pre", "column of sending ids"), ("post", "column of receiving ids")):
        parser.add_argument(f"--{name}", type=_column, help=f"{what}: its name, or its position from 0")
    weight = parser.add_mutually_exclusive_group()
    weight.add_argument("--weight", type=_column, default=GUESS, help="of weights: its name, or its position from 0")
    weight.add_argument("--no-weight", dest="weight", action="store_const", const=None, help="all weights are 1")
    parser.add_argument("--nodes", type=Path, help="a table with a row for each node: its id, type, transmitter, ...")
    parser.add_argument("--min-weight", type=float, help="the least weight of a synapse, after summing its rows")
    parser.add_argument("--format", help="of the file, whatever its suffix")
    parser.add_argument("--separator", choices=[*SEPARATORS.values()], help="between the cells of a text")
    parser.add_argument("--max-bytes", type=_size, help="how many bytes the file may unpack to")


def _column(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _say(text: str) -> None:
    """Print, letters that the terminal lacks escaped; where nobody reads on, as with `| head`, end silently."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        # At exit Python writes what is left once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def _complain(what: object) -> None:
    """One line on stderr."""
    print(f"sparse-etrace: {shown(' '.join(str(what).split()))}", file=sys.stderr)


def _info() -> str:
    names = ("sparse-etrace", "jax", "jaxlib", "equinox", "numpy", "scipy")
    lines = {name: version(name) for name in names} | {"python": platform.python_version()}
    lines["devices"] = ", ".join(str(device) for device in jax.devices())
    lines["kernels"] = f"those of XLA: {native.REASON}" if native.REASON else f"compiled, {native.KERNELS}, on a CPU"
    lines["edges"] = f"sorted by scipy: {sorting.REASON}" if sorting.REASON else "sorted by compiled code"
    return "\n".join(f"{name:14} {value}" for name, value in lines.items())


def _read(args: argparse.Namespace, dtype: str = "float32") -> Graph:
    """The graph of a data set or a file; what `read_graph` guesses is said on stderr."""
    if args.file in DATA_SETS:
        for name in ("nodes", "min_weight"):
            if getattr(args, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: expected a file beside it, got the data set {args.file!r}.")
        return DATA_SETS[args.file]()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        given = ("format", "pre", "post", "weight", "min_weight", "nodes", "max_bytes")
        columns = {name: getattr(args, name) for name in given}
        columns["separator"] = {word: cell for cell, word in SEPARATORS.items()}.get(args.separator)
        graph = read_graph(args.file, dtype=dtype, **columns)
    for warning in said:
        _complain(warning.message)
    return graph


def _convert(args: argparse.Namespace) -> None:
    with jax.enable_x64(True):
        graph = _read(args, "float64")
        write_graph(args.out, graph, format=args.to)
    conn = graph.connectivity
    _say(f"{shown(args.out)}: {conn.num_pre:,} x {conn.num_post:,} units, {conn.num_synapses:,} synapses")


def _inspect(args: argparse.Namespace) -> None:
    graph = _read(args)
    _say(str(inspect_graph(graph)))
    if graph.connectivity.num_pre != graph.connectivity.num_post:
        _say("\nNo recurrent network has this graph, so that there are no costs of learners: it is not square.")
        return
    unit = "element" if args.batch == 1 else "elements"
    on = "" if args.devices == 1 else f", on each of {args.devices:,} devices"
    _say(f"\nto train each synapse and each bias of a network of leaky rate units, {args.batch:,} batch {unit}{on}\n")
    if args.learner is None:
        _say(str(learner_costs(graph, args.batch, devices=args.devices)))
        return
    found = [learner_costs(graph, args.batch, [one], steps=steps, devices=args.devices) for one, steps in args.learner]
    _say(str(LearnerCosts(tuple(row for costs in found for row in costs.rows), args.batch, args.devices)))


def _demo(args: argparse.Namespace) -> None:
    options = {"quick": args.quick, "seed": args.seed}
    if args.name == "worm":
        demo.run(args.out, exact=args.exact, **options)
    elif args.name == "events":
        demo_events.run(args.out, **options)
    elif args.name == "eye":
        demo_eye.run(args.out, radius=args.radius, **options)
    elif args.name == "spikes":
        demo_spikes.run(args.out, **options)
    else:
        demo_traffic.run(args.out, args.data, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0, or 2 with one line of explanation.

    Example:
        >>> from sparse_etrace import cli
        >>> cli.main(["demo", "worm", "--quick", "--out", "/dev/null/nowhere"])
        2
    """
    args = _parser().parse_args(argv)
    if args.command == "info":
        _say(_info())
        return 0
    try:
        if args.command in ("inspect", "convert"):
            (_inspect if args.command == "inspect" else _convert)(args)
            return 0
        if args.name == "traffic" and args.data is None:
            raise FileNotFoundError("--data: expected the file metr_la_week.npz, got none. se.datasets.traffic tells.")
        if args.out.exists() and not args.out.is_dir():
            raise NotADirectoryError(f"--out: expected a folder, got {args.out}, a file. Name a folder.")
        args.out.mkdir(parents=True, exist_ok=True)
        _demo(args)
    except (OSError, ImportError, TypeError, ValueError) as error:
        if args.command == "demo" and not isinstance(error, OSError):
            raise
        _complain(error)
        return 2
    return 0
