"""The same as `jllama generate`: `python scripts/generate.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("generate")
