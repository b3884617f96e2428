"""The rules of the house: layers, sizes, words, docstrings."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import sparse_etrace as se

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparse_etrace"
# A module imports only modules above it.
HOUSE = """
    _numbers _table _columns _sums _windows _connectivity _labels _graph _build _edges _convert _files _transform
    _kernels _op _param _primitives _program _linear _constant _positions _routes _filter _origin _reading
    _grouping _batch_axes _step _links _reach _influence _traces _support _notes _feedback _engine _trace_engine
    _influence_engine _black_box _algorithm _online
    _batches _updates _non_finite _facts _checkpoint _fit_options _fit_result _fit_file
    _fit_loop _fit _report _memory _alignment surrogate cells _inspect _costs
    datasets plot demo cli
""".split()
# Inside a package, `base` is above its siblings, or these in their order; the others do not import one another.
FIRST = {
    "_files": ("base", "columns", "npz", "arrow", "text"),
    "_kernels": ("native", "products"),
}
MAX_LINES = 400

PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT_FILES = sorted(
    path
    for path in [
        *ROOT.glob("*.*"),
        ROOT / ".ci/run",
        ROOT / "Makefile",
        *(
            path
            for name in ("sparse_etrace", "native", "datasets", "tests", "examples", "docs")
            for path in (ROOT / name).rglob("*")
        ),
    ]
    if path.is_file() and path.suffix not in {".npz", ".png", ".pyc"}
)
MODULES = ["sparse_etrace", *(info.name for info in pkgutil.walk_packages(se.__path__, "sparse_etrace."))]


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _imports(path, root=PACKAGE):
    """The modules of the package that a file imports, as paths of names without the package's own."""
    here = path.relative_to(root).with_suffix("").parts
    package = here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
            yield from (tuple(parts[1:]) for parts in found if parts[0] == root.name)
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (*package[: len(package) - node.level + 1], *base)
            elif base[0] == root.name:
                base = base[1:]
            else:
                continue
            for alias in node.names:
                target = (*base, alias.name)
                is_module = (root.joinpath(*target)).is_dir() or (root.joinpath(*target).with_suffix(".py")).is_file()
                yield target if is_module else base


def _violations(path, root=PACKAGE):
    here = path.relative_to(root).with_suffix("").parts
    if here == ("__init__",):
        return []
    if here[0] not in HOUSE:
        return [f"{here[0]} has no place in the house"]
    found = []
    for target in _imports(path, root):
        if not target:
            found.append("the package itself")
        elif target[0] == here[0]:
            first = FIRST.get(here[0], ("base",))
            above = first[: first.index(here[1])] if here[1] in first else first
            if here[1] != "__init__" and target[1:2] not in [(name,) for name in above]:
                found.append(f"its sibling {'.'.join(target)}")
        elif target[0] not in HOUSE[: HOUSE.index(here[0])]:
            found.append(f"{'.'.join(target)}, which is not above it")
    return found


@pytest.mark.parametrize("path", PYTHON_FILES, ids=_name)
def test_imports_only_from_above(path):
    assert not _violations(path), f"{_name(path)} imports {_violations(path)}"


@pytest.mark.parametrize(
    "where, source, allowed",
    [
        ("_graph.py", "from ._connectivity import Connectivity", True),
        ("_graph.py", "from . import _connectivity", True),
        ("_graph.py", "import numpy, json.decoder", True),
        ("_graph.py", "from ._convert import from_edges", False),
        ("_graph.py", "def f():\n    from . import _convert", False),
        ("_graph.py", "import sparse_etrace._convert as c", False),
        ("_graph.py", "import sparse_etrace as se", False),
        ("_graph.py", "from . import Connectivity", False),
        ("_algorithm/d_rtrl.py", "from .base import Learner", True),
        ("_algorithm/d_rtrl.py", "from . import base", True),
        ("_algorithm/d_rtrl.py", "from .._op.base import ETraceOp", True),
        ("_algorithm/d_rtrl.py", "from .._op import ETraceOp", True),
        ("_algorithm/d_rtrl.py", "from .._online import fit", False),
        ("_algorithm/d_rtrl.py", "from .bptt import BPTT", False),
        ("_algorithm/d_rtrl.py", "from . import BPTT", False),
        ("_algorithm/base.py", "from .bptt import BPTT", False),
        ("_algorithm/__init__.py", "from .bptt import BPTT", True),
        ("_kernels/trace.py", "from .products import sampled", True),
        ("_kernels/trace.py", "from . import native", True),
        ("_kernels/products.py", "from .trace import window", False),
        ("_kernels/native.py", "from .products import sampled", False),
        ("cells/lif.py", "from ..surrogate import triangle", True),
        ("_extra.py", "import numpy", False),
        ("__init__.py", "from .cli import main", True),
    ],
)
def test_the_import_check_sees(tmp_path, where, source, allowed):
    root = tmp_path / "sparse_etrace"
    for name in (
        "_connectivity.py",
        "_convert.py",
        "_op/base.py",
        "_algorithm/base.py",
        "_algorithm/bptt.py",
        "_kernels/native.py",
        "_kernels/products.py",
        where,
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / where).write_text(source)
    assert (not _violations(root / where, root)) == allowed


@pytest.mark.parametrize("path", PYTHON_FILES, ids=_name)
def test_source(path):
    text = path.read_text()
    nodes = list(ast.walk(ast.parse(text)))
    lines = len(text.splitlines())
    assert lines <= MAX_LINES
    asserts = [node.lineno for node in nodes if isinstance(node, ast.Assert)]
    assert not asserts, f"assert in the library, lines {asserts}"
    stars = [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert not stars, f"import *, lines {stars}"


FORBIDDEN = {
    "absolute path of a machine": r"(?<![\w.:/])/(?:home|root|work|Users|opt|mnt|scratch)/",
    "host of a package registry": r"pypi\.org|pythonhosted\.org|anaconda\.(?:org|com)|(?:extra-)?index-url",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_of_one_machine(what):
    found = [
        f"{_name(path)}:{number}"
        for path in PROJECT_FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != Path(__file__).resolve() and re.search(FORBIDDEN[what], line)
    ]
    assert PROJECT_FILES and not found


def test_data_sets_are_a_plain_folder():
    assert not list((ROOT / "datasets").rglob("*.py"))
    for folder in (ROOT / "datasets").iterdir():
        assert {"README.md", "LICENSE"} <= {path.name for path in folder.iterdir()}, folder


def _public():
    owners = [se, *(value for name in _names(se) if inspect.ismodule(value := getattr(se, name)))]
    return [(f"{owner.__name__}.{name}", getattr(owner, name)) for owner in owners for name in _names(owner)]


def _names(module):
    return getattr(module, "__all__", [])


def _own_docstring(value):
    # A dataclass without a docstring gets its signature as one.
    text = (vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)) or ""
    return "" if text.startswith(f"{getattr(value, '__name__', '')}(") else text.strip()


def test_every_public_name_has_a_docstring():
    assert _names(se), "sparse_etrace has no __all__"
    bare = [name for name, value in _public() if not isinstance(value, str) and not _own_docstring(value)]
    bare += [
        f"{name}.{attribute}"
        for name, owner in _public()
        if inspect.isclass(owner)
        for attribute, value in vars(owner).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(owner, attribute))
    ]
    assert not bare


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    with jax.enable_x64(False):
        result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
