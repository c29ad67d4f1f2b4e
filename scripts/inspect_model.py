"""The same as `jllama inspect`: `python scripts/inspect_model.py --flagfile=…`."""

from jllama.cli import command_line, inspect

if __name__ == "__main__":
    command_line.run(inspect)
