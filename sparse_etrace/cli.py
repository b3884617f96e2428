"""The command line: `sparse-etrace demo worm`, `sparse-etrace info`."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import jax

from . import demo
from ._kernels import native


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**31 - 1}, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparse-etrace", description="Train recurrent networks online, on the synapses that exist.")
    parser.add_argument("--version", action="version", version=version("sparse-etrace"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    show = commands.add_parser("demo", help="train a real network and save figures and numbers")
    show.add_argument("name", choices=["worm"], help="worm: the connectome of C. elegans learns MNIST-1D")
    show.add_argument("--quick", action="store_true", help="a fifth of the updates: about a minute")
    show.add_argument("--exact", action="store_true", help="train by RTRL as well: about an hour (quick: ten minutes)")
    show.add_argument("--out", type=Path, default=Path("results"), help="folder for the results (default: results)")
    show.add_argument("--seed", type=_seed, default=0, help="of weights and batches (default: 0)")
    commands.add_parser("info", help="versions, devices, and the kernels in use")
    return parser


def _info() -> str:
    names = ("sparse-etrace", "jax", "jaxlib", "equinox", "numpy", "scipy")
    lines = {name: version(name) for name in names} | {"python": platform.python_version()}
    lines["devices"] = ", ".join(str(device) for device in jax.devices())
    lines["kernels"] = f"those of XLA: {native.REASON}" if native.REASON else f"compiled, {native.KERNELS}, on a CPU"
    return "\n".join(f"{name:14} {value}" for name, value in lines.items())


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
        print(_info())
        return 0
    try:
        if args.out.exists() and not args.out.is_dir():
            raise NotADirectoryError(f"--out: {args.out} is a file; name a folder")
        args.out.mkdir(parents=True, exist_ok=True)
        demo.run(args.out, quick=args.quick, seed=args.seed, exact=args.exact)
    except OSError as error:
        print(f"sparse-etrace: {error}", file=sys.stderr)
        return 2
    return 0
