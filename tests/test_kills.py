"""Killed at any moment and started again, a run ends with the bits of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import pytest

import sparse_etrace as se

PACKAGES = str(Path(se.__file__).parents[1])


def start(folder):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([PACKAGES, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    return subprocess.Popen([sys.executable, killed.__file__, folder], env=env, stderr=subprocess.PIPE, text=True)


def lines(folder):
    """What the log says, a half line at its end left out."""
    path = folder / "log"
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]


def end_of(process):
    _, error = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), error
    return process.returncode


@pytest.mark.soak
def test_killed_and_resumed(tmp_path, amount):
    """A third of the kills comes at any time since the start, the others in training, where files are written."""
    kills, rng = amount(2, 200), random.Random(0)
    alone = tmp_path / "alone"
    alone.mkdir()
    assert end_of(start(alone)) == 0
    truth = dict(lines(alone))
    assert len(truth) == killed.SEQUENCES
    done = starts = resumed = 0
    while done < kills:
        folder = tmp_path / f"run{starts}"
        folder.mkdir()
        starts += 1
        while not (folder / "end").exists():
            before = len(lines(folder))
            process = start(folder)
            if done < kills:
                if rng.random() < 1 / 3:
                    time.sleep(rng.uniform(0, 4))
                else:
                    while process.poll() is None and len(lines(folder)) <= before:
                        time.sleep(0.002)
                    time.sleep(rng.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
            if end_of(process) == 0:
                break
            done += 1
            resumed += len(lines(folder)) > before > 0
        found = lines(folder)
        assert found and all(truth[sequence] == bits for sequence, bits in found)
        assert (folder / "end").read_text() == (alone / "end").read_text()
        left = {f"run.ckpt{end}" for end in ("", ".part", ".lock")}
        assert {path.name for path in folder.iterdir()} <= {"end", "log", *left}
    print(f"{done} kills in {starts} runs; {resumed} of the resumptions trained on before the next kill")
