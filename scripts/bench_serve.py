"""The same as `jllama bench serve`: `python scripts/bench_serve.py --url=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("bench serve")
