"""The most memory that this process has held."""

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
