"""The same as `jllama serve`: `python scripts/serve.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("serve")
