"""The same as `jllama quantize`: `python scripts/quantize.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("quantize")
