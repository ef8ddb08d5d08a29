"""Prints XLA's flags for code that compiles in half the time and runs slower: `make test` uses it.

What a test says of numbers holds of this code too. What is claimed of the program itself (its bits,
its bytes) is tested on the code that users get: the tests marked `compiled`.
"""

from importlib.metadata import version

FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # a later one does not know it, and ends the process
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

if __name__ == "__main__":
    print(*FLAGS)
