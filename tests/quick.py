"""How the programs of the tests are compiled: they are many and small, so that compiling them takes longest."""

import os
import subprocess
import sys

FLAGS = {
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def compile_quickly():
    """For this process and those that it starts, where XLA knows the flags: it ends a process that has others."""
    if FLAGS.keys() & os.environ.keys():
        return
    ask = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"]
    if subprocess.run(ask, env=os.environ | FLAGS, capture_output=True).returncode == 0:
        os.environ.update(FLAGS)


def plain_environment():
    """For a process that compiles as it does for a user."""
    return {name: value for name, value in os.environ.items() if (name, value) not in FLAGS.items()}
