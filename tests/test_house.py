"""The rules of the house: layers, sizes, words, docstrings."""

import ast
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from pathlib import Path

import jax
import pytest

import sparse_etrace as se

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparse_etrace"
# A module imports only what stands above it: wings from top to bottom, rooms of a wing from left to right. Those that
# `*` stands for do not import one another.
HOUSE = {
    "_types": "",
    "_library": "",
    "_numbers": "",
    "_arrays": "",
    "_sums": "",
    "_varying": "",
    "_optional": "",
    "_text": "",
    "surrogate": "",
    "_graph": "columns sorting connectivity labels table selection graph signs build edges networks matrices "
    "transforms summary",
    "transform": "origin merge normalized *",
    "generate": "",
    "interchange": "others *",
    "_files": "safe columns cells text arrow npz graphml_document feather parquet neurons *",
    "_outside": "",
    "datasets": "",
    "_kernels": "native windows dense products trace elementwise *",
    "_blocks": "",
    "_op": "active contract weights boundary param initial delays spmatmul matmul weight_fn *",
    "rewiring": "",
    "_sharding": "",
    "_read_sharded": "",
    "cells": "cell supports *",
    "cells/spiking": "constants integrate current population delta exponential lif * whole_fly",
    "_model": "types primitives program refusals linear constant positions steady trained call links origin reading "
    "rings through groups grouping batch_axes step unit_links",
    "_rule": "reach influence adjoint traces support notes signal engine term_engine trace_engine kept_traces "
    "own_traces influence_engine black_box past derivative sensitivity nodes by_parameter bridge rows by_event",
    "_learner": "learner trace_learner * d_rtrl bridged",
    "_train": "online check_learner batches updates fit_result non_finite facts lock parted archive checkpoint "
    "fit_options fit_file delayed stream predict fit_loop fit rewire",
    "_report": "explain exchange memory alignment costs compare",
    "spikes": "named *",
    "evaluate": "",
    "stimuli": "",
    "plot": "style checks *",
    "demo": "",
    "demo_events": "",
    "demo_traffic": "",
    "demo_spikes": "",
    "demo_eye_model": "",
    "demo_eye": "",
    "cli": "",
}
MAX_LINES, MAX_CODE = 350, 60  # of a file, and of code in a function
MAX_ANY = 300  # in annotations of the library without figures, which say nothing there

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
    if "__pycache__" not in path.parts and path.is_file() and path.suffix not in {".npz", ".png"}
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
    wings = list(HOUSE)
    if here[0] not in wings:
        return [f"{here[0]} has no place in the house"]
    rooms, found = HOUSE[here[0]].split(), []
    if here[1:] and here[1] not in (*rooms, "__init__") and "*" not in rooms:
        found.append(f"{here[1]} has no place in its wing")
    for target in _imports(path, root):
        depth = next((d for d, name in enumerate(here) if target[d : d + 1] != (name,)), len(here))
        if not target:
            found.append("the package itself")
        elif depth == 0:
            if target[0] not in wings[: wings.index(here[0])]:
                found.append(f"{'.'.join(target)}, which is not above it")
        elif depth == len(here) or here[depth] != "__init__":
            rooms = HOUSE["/".join(here[:depth])].split()
            above = rooms[: rooms.index(here[depth] if here[depth] in rooms else "*")] if here[depth:] else []
            if target[depth : depth + 1] == () or target[depth] not in above:
                found.append(f"its sibling {'.'.join(target)}")
    return found


@pytest.mark.parametrize("path", PYTHON_FILES, ids=_name)
def test_imports_only_from_above(path):
    assert not _violations(path), f"{_name(path)} imports {_violations(path)}"


@pytest.mark.parametrize(
    "where, source, allowed",
    [
        ("_graph/graph.py", "from .connectivity import Connectivity", True),
        ("_graph/graph.py", "from . import connectivity", True),
        ("_graph/graph.py", "import numpy, json.decoder", True),
        ("_graph/graph.py", "from .matrices import from_edges", False),
        ("_graph/graph.py", "def f():\n    from . import matrices", False),
        ("_graph/graph.py", "import sparse_etrace._graph.matrices as c", False),
        ("_graph/graph.py", "import sparse_etrace as se", False),
        ("_graph/graph.py", "from . import Connectivity", False),
        ("_learner/d_rtrl.py", "from .learner import Learner", True),
        ("_learner/d_rtrl.py", "from . import learner", True),
        ("_learner/d_rtrl.py", "from .._op.contract import ETraceOp", True),
        ("_learner/d_rtrl.py", "from .._op import ETraceOp", True),
        ("_learner/d_rtrl.py", "from .._train.fit import fit", False),
        ("_learner/d_rtrl.py", "from .bptt import BPTT", False),
        ("_learner/d_rtrl.py", "from . import BPTT", False),
        ("_learner/learner.py", "from .bptt import BPTT", False),
        ("_learner/__init__.py", "from .bptt import BPTT", True),
        ("_kernels/trace.py", "from .products import sampled", True),
        ("_kernels/trace.py", "from . import native", True),
        ("_kernels/products.py", "from .trace import advance", False),
        ("_kernels/native.py", "from .products import sampled", False),
        ("cells/lif.py", "from ..surrogate import triangle", True),
        ("cells/spiking/lif.py", "from .population import population_of", True),
        ("cells/spiking/lif.py", "from ..cell import constant", True),
        ("cells/spiking/lif.py", "from .alif import ALIF", False),
        ("cells/spiking/lif.py", "from ..gru import GRU", False),
        ("cells/spiking/population.py", "from .lif import LIF", False),
        ("cells/spiking/__init__.py", "from .lif import LIF", True),
        ("_graph/extra.py", "import numpy", False),
        ("_learner/own.py", "import numpy", True),
        ("_extra.py", "import numpy", False),
        ("__init__.py", "from .cli import main", True),
    ],
)
def test_the_import_check_sees(tmp_path, where, source, allowed):
    root = tmp_path / "sparse_etrace"
    for name in (
        "_graph/connectivity.py",
        "_graph/matrices.py",
        "_op/contract.py",
        "_learner/learner.py",
        "_learner/bptt.py",
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
    assert not [*_long_functions(text)]


NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def _long_functions(text):
    """Functions of more than `MAX_CODE` lines of code: docstrings, comments and blank lines are none."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in NO_CODE for line in range(t.start[0], t.end[0] + 1)}
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    for node in functions:
        if ast.get_docstring(node):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for node in functions:
        size = len(code.intersection(range(node.lineno, node.end_lineno + 1)))
        if size > MAX_CODE:
            yield f"{node.name}, line {node.lineno}: {size} lines of code"


@pytest.mark.parametrize("size, is_seen", [(MAX_CODE, False), (MAX_CODE + 1, True)])
def test_the_check_of_functions_sees(size, is_seen):
    text = 'def f():\n    """One.\n\n    Two.\n    """\n    # three\n\n' + "    x = 1\n" * (size - 1)
    assert bool([*_long_functions(text)]) == is_seen
    inside = "class A:\n" + "".join(f"    {line}\n" for line in text.splitlines())
    assert bool([*_long_functions(inside)]) == is_seen


def _anys(texts):
    nodes = (node for text in texts for node in ast.walk(ast.parse(text)))
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)


def test_annotations_say_something():
    texts = [path.read_text() for path in PYTHON_FILES if "plot" not in path.parts]
    found = _anys(texts)
    assert 0 < found < MAX_ANY <= _anys([*texts, *["def f(x: Any) -> Any: ..."] * 150])


# Wings whose errors may say what is the matter in other words than what was expected and what came.
IN_OTHER_WORDS = {"_op", "cells", "_model", "_rule", "_learner"}
ARGUMENT = r"(--)?[\w{}]+(\[[^]]+\]|\.\w+)?"


def _template(node):
    """What a string says, with `{}` for what it fills in; None for another expression."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else None


def _badly_said(path, root=PACKAGE):
    """Errors of a file that have another form than `argument: expected A, got B. Way out.`"""
    wing = path.relative_to(root).with_suffix("").parts[0]
    start = rf"{ARGUMENT}((, | and ){ARGUMENT})*: "
    if wing == "_files":  # what a format says of a file follows the path, which `read_graph` puts before it
        start = f"({start})?"
    body = r".+" if wing in IN_OTHER_WORDS else r"expected [^;]+, got [^;]+"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name, said = ast.unparse(node.exc.func), _template(node.exc.args[0])
            if name not in ("ValueError", "TypeError", "NotImplementedError", "FileNotFoundError") or said is None:
                continue
            if said != "{}: {}" and not re.fullmatch(start + body + r"(\.|\{\})", said):
                yield f"line {node.lineno}: {said}"


@pytest.mark.parametrize("path", [p for p in PYTHON_FILES if p.stem not in ("check", "check_learner")], ids=_name)
def test_errors_have_one_form(path):
    """But for those of `check_op` and `check_learner`, which name a law."""
    assert not [*_badly_said(path)]


@pytest.mark.parametrize(
    "where, said, is_good",
    [
        ("_graph/graph.py", 'f"weight: expected {a}, got {b}. Convert it."', True),
        ("_graph/graph.py", 'f"edge_attrs[{a!r}]: expected {a}, got {b}."', True),
        ("_graph/graph.py", 'f"weight: expected {a}, got {b}"', False),
        ("_graph/graph.py", 'f"weight: expected {a}, got {b}; convert it."', False),
        ("_graph/graph.py", 'f"weight: got {b}. It needs {a}."', False),
        ("_graph/graph.py", 'f"expected {a}, got {b}."', False),
        ("_files/npz.py", 'f"expected {a}, got {b}. {AGAIN}"', True),
        ("_files/npz.py", 'f"has {b}. {AGAIN}"', False),
        ("_model/step.py", 'f"model: it is {a}. Change it."', True),
        ("_model/step.py", 'f"model: it is {a}, no more"', False),
        ("_model/step.py", 'f"It is {a}. Change it."', False),
    ],
)
def test_the_check_of_errors_sees(tmp_path, where, said, is_good):
    path = tmp_path / where
    path.parent.mkdir()
    path.write_text(f"raise ValueError({said})")
    assert (not [*_badly_said(path, tmp_path)]) == is_good


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
