"""The same as `jllama random-checkpoint`: `python scripts/make_random_checkpoint.py --flagfile=…`."""

from jllama.cli import command_line, random_checkpoint

if __name__ == "__main__":
    command_line.run(random_checkpoint)
