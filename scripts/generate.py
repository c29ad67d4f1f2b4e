"""The same as `jllama generate`: `python scripts/generate.py --flagfile=…`."""

from jllama.cli import command_line, generate

if __name__ == "__main__":
    command_line.run(generate)
