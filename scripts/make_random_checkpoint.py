"""The same as `jllama random-checkpoint`: `python scripts/make_random_checkpoint.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("random-checkpoint")
