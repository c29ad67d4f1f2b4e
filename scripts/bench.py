"""The same as `jllama bench`: `python scripts/bench.py --flagfile=…`."""

from jllama.cli import bench, command_line

if __name__ == "__main__":
    command_line.run(bench)
