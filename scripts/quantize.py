"""The same as `jllama quantize`: `python scripts/quantize.py --flagfile=…`."""

from jllama.cli import command_line, quantize

if __name__ == "__main__":
    command_line.run(quantize)
