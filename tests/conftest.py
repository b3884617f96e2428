import contextlib
import ctypes
import gc
import importlib.util
import os
from pathlib import Path

import equinox as eqx
import hypothesis
import jax
import jaxtyping
import pytest
from quick import compile_quickly

# What a process may hold after a module, and after any test.
AFTER_MODULE, AFTER_TEST, STATUS = 1_000_000_000, 1_600_000_000, Path("/proc/self/statm")
# Where shapes are checked at each call: everywhere it would be a tenth of the time. `make soak` checks all.
CHECKED = {
    "cells",
    "conformance",
    "connectivity",
    "convert",
    "graph",
    "influence",
    "kernels",
    "layouts",
    "ops",
    "param",
}
os.environ.setdefault("MPLBACKEND", "Agg")
compile_quickly()
# The first example of a test compiles, so its time says nothing.
for name, count in ("suite", 8), ("full", 100):
    hypothesis.settings.register_profile(name, deadline=None, derandomize=True, max_examples=count, print_blob=True)


@pytest.fixture
def on_cpu():
    """For what looks at programs of the compiled kernels, on a machine that also has a GPU."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the full counts of the tests that are marked `soak`")


def pytest_configure(config):
    hypothesis.settings.load_profile("full" if config.getoption("full") else "suite")
    config.addinivalue_line(
        "markers", "soak(only=False): its count is small by default, or none; `make soak` runs the full one"
    )
    config.addinivalue_line("markers", "optimized: it looks at what XLA's optimizations leave of memory, bits or time")
    if jax.__version_info__ < (0, 9):
        # There JAX warns of its own derivative by real numbers that meet complex ones.
        config.addinivalue_line("filterwarnings", "ignore:Casting complex values to real discards the imaginary part")


def pytest_report_header():
    # `sparse_etrace` is found, not imported: the shape checks are installed only after this file is read.
    spec = importlib.util.find_spec("sparse_etrace")
    return f"sparse_etrace under test: {spec.origin if spec else 'not installed'}"


def pytest_collection_modifyitems(config, items):
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("soak")
    if not config.getoption("full"):
        dropped = [item for item in items if any(mark.kwargs.get("only") for mark in item.iter_markers("soak"))]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
    # The longest test first, so that no worker is left alone with it at the end.
    items.sort(key=lambda item: item.path.name != "test_wheel.py")


def pytest_collection_finish():
    # Tracing makes many objects that stay, and looking through all of them again is a quarter of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Without most optimizations but where they matter; around fixtures too, also those of a module.

    The tests of a module share programs, which are dropped after it, or where they are too many.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    is_checked = item.config.getoption("full") or item.path.stem.removeprefix("test_") in CHECKED
    jaxtyping.config.update("jaxtyping_disable", not is_checked)
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimized") is None)
    try:
        return (yield)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        is_last = nextitem is None or nextitem.path != item.path
        if _memory() > (AFTER_MODULE if is_last else AFTER_TEST):
            eqx.clear_caches()
            jax.clear_caches()
            gc.collect()
            _give_back()


def _give_back():
    """Freed memory to the system, which glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _memory():
    """Bytes that this process holds; programs that were compiled are most of them."""
    if not STATUS.exists():
        return 0
    return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def amount(pytestconfig):
    """`amount(short, full)`: how many cases to try."""
    return lambda short, full: full if pytestconfig.getoption("full") else short


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
