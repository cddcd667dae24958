"""The command line: ``python -m opreg ops | show NAME | new NAME | hub FOLDER | stubs | doctor | demo | bench``."""

import argparse
import difflib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from . import bench, catalogue
from ._library import KERNEL_KEYS
from .bench.files import bench_save
from .bench.text import bench_text
from .building.template import write_package
from .doctor import diagnosis, gather
from .faces import stubs
from .hub import write_kernel, write_project
from .op import Op
from .registry import get, registered

DEMO = Path(__file__).parents[1] / "examples" / "digits.py"


class UnknownOp(Exception):
    """A name on the command line that no op has."""


def find(name: str) -> Op:
    try:
        return get(name)
    except KeyError:
        names = [op.name for op in registered()]
        close = difflib.get_close_matches(name, names, cutoff=0.5) or [n for n in names if name in n]
        hint = f"near it: {', '.join(close)}" if close else "`python -m opreg ops` lists them"
        raise UnknownOp(f'opreg: expected the name of an op, got "{name}"; {hint}') from None


def load_installed() -> None:
    """Imports the packages whose entry points say that they register ops."""
    for entry in metadata.entry_points(group="opreg.ops"):
        try:
            entry.load()
        except Exception as error:  # one package's trouble is not the others'
            print(f"opreg: {entry.name} can't be loaded: {type(error).__name__}: {error}", file=sys.stderr)


def ops(args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps([{"op": op.name, **catalogue.coverage(op)} for op in registered()], indent=1))
    else:
        print(catalogue.ops_table())
    return 0


def show(args: argparse.Namespace) -> int:
    print(catalogue.show(find(args.name)))
    return 0


def new(args: argparse.Namespace) -> int:
    try:
        for path in write_package(args.name, args.folder or Path(args.name)):
            print(f"wrote {path}")
    except (ValueError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def hub(args: argparse.Namespace) -> int:
    try:
        for path in (write_project if args.sources else write_kernel)(args.folder, args.name):
            print(f"wrote {path}")
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def doctor(args: argparse.Namespace) -> int:
    text, status = diagnosis(gather())
    print(text)
    return status


def demo(args: argparse.Namespace) -> int:
    if not DEMO.exists():
        print("The demo, examples/digits.py, ships with the source repository: run `make demo` in a checkout.")
        return 1
    print(f"running {DEMO}", flush=True)
    return subprocess.run([sys.executable, str(DEMO)]).returncode


def run_bench(args: argparse.Namespace) -> int:
    names = [find(name).qualname for name in args.ops]
    fields = ("sizes", "dtypes", "threads", "rounds", "device", "providers", "sweep", "steps", "peers")
    result = bench.run(names, **{name: getattr(args, name) for name in fields})
    print(bench_text(result))
    if args.output is not None:
        for path in bench_save(result, args.output):
            print(f"wrote {path}")
    for why in result["failed"].values():
        print(f"opreg: {why}", file=sys.stderr)
    return int(bool(result["failed"]))


def write_stubs(args: argparse.Namespace) -> int:
    for path in stubs.write(stubs.PACKAGE):
        print(f"wrote {path}")
    return 0


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m opreg", description="Losses and activations as custom ops.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    c = commands.add_parser("ops", help="every op and what is registered for it")
    c.add_argument("--json", action="store_true", help="for programs")
    c.set_defaults(run=ops)
    c = commands.add_parser("show", help="all about one op")
    c.add_argument("name", metavar="NAME")
    c.set_defaults(run=show)
    c = commands.add_parser("new", help="write a package of ops of your own, to begin with")
    c.add_argument("name", metavar="NAME", help="of the package, and of its ops' namespace")
    c.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, help="where to; default: NAME")
    c.set_defaults(run=new)
    c = commands.add_parser("hub", help="write this package as a kernel that the `kernels` package loads")
    c.add_argument("folder", metavar="FOLDER", type=Path, help="of the kernel")
    c.add_argument("--name", default="opreg", help="of the kernel; default: opreg")
    c.add_argument("--sources", action="store_true", help="the project that kernel-builder makes it of, in its place")
    c.set_defaults(run=hub)
    c = commands.add_parser("stubs", help="write the package's .pyi files anew, after a declaration was edited")
    c.set_defaults(run=write_stubs)
    c = commands.add_parser("doctor", help="versions, kernels, and what is wrong with this installation")
    c.set_defaults(run=doctor)
    c = commands.add_parser("demo", help="train, compile, export and deploy a model on scikit-learn's digits")
    c.set_defaults(run=demo)
    c = commands.add_parser(
        "bench", help="ours, eager, Inductor, peers and the floors", description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    c.add_argument("ops", nargs="*", metavar="OP", help="default: all")
    c.add_argument("--size", dest="sizes", nargs="+", choices=list(bench.ELEMENTS), default=["small", "usual", "large"])
    c.add_argument("--dtype", dest="dtypes", nargs="+", choices=list(bench.DTYPES), default=["float32", "bfloat16"])
    c.add_argument(
        "--threads", type=positive, nargs="+", default=[],
        help="default: torch's; of several, all is measured with the most, ours and eager with the others too, "
        "at the last size in the first dtype",
    )  # fmt: skip
    c.add_argument(
        "--providers", nargs="+", choices=list(bench.PROVIDERS),
        help="default: each where it tells something; Inductor, whose compilations take long, where a target asks",
    )  # fmt: skip
    c.add_argument("--rounds", type=positive, default=15)
    c.add_argument("--device", choices=list(KERNEL_KEYS), default="cpu")
    c.add_argument("--sweep", action="store_true", help="time against size too, for one op of each kind")
    c.add_argument("--steps", action="store_true", help="compiled training steps too")
    c.add_argument("--peers", type=Path, metavar="FILE", help="other libraries' functions: benchmarks/peers.py")
    c.add_argument("--output", type=Path, metavar="DIR", help="write JSON, Markdown and pictures there")
    c.set_defaults(run=run_bench)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 for a wrong command line."""
    args = parser().parse_args(argv)
    load_installed()
    try:
        status: int = args.run(args)
    except UnknownOp as e:
        print(e, file=sys.stderr)
        status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
