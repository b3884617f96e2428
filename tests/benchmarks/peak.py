"""The most memory that a process has held."""

import concurrent.futures
import multiprocessing
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_mb():
    """Megabytes. What getrusage says on Linux begins with the peak of the process that started this one."""
    if STATUS.is_file():
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def in_process(function, *args):
    """Run in a process of its own, which gives its memory back and whose peak is its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()
