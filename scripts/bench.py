"""The same as `jllama bench`: `python scripts/bench.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("bench")
