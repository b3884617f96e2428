import importlib.util
import os

import hypothesis
import jax
import pytest
from quick import compile_quickly

os.environ.setdefault("MPLBACKEND", "Agg")
compile_quickly()
# The first example of a test compiles, so its time says nothing.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=30, print_blob=True)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the full counts of the tests that are marked `soak`")


def pytest_configure(config):
    config.addinivalue_line("markers", "soak: its count is small by default; `make soak` runs the full one")
    config.addinivalue_line("markers", "optimized: it looks at what XLA's optimizations leave of memory, bits or time")


def pytest_report_header():
    # `sparse_etrace` is found, not imported: the shape checks are installed only after this file is read.
    spec = importlib.util.find_spec("sparse_etrace")
    return f"sparse_etrace under test: {spec.origin if spec else 'not installed'}"


def pytest_collection_modifyitems(items):
    # The longest test first, so that no worker is left alone with it at the end.
    items.sort(key=lambda item: item.path.name != "test_wheel.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Without most optimizations but where they matter; around fixtures too, also those of a module."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimized") is None)
    try:
        return (yield)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def amount(pytestconfig):
    """`amount(short, full)`: how many cases to try."""
    return lambda short, full: full if pytestconfig.getoption("full") else short


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
