"""The same as `jllama perplexity`: `python scripts/perplexity.py --flagfile=…`."""

from jllama.cli import command_line, perplexity

if __name__ == "__main__":
    command_line.run(perplexity)
