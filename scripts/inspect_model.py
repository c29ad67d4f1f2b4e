"""The same as `jllama inspect`: `python scripts/inspect_model.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("inspect")
