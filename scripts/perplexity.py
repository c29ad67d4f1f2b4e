"""The same as `jllama perplexity`: `python scripts/perplexity.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("perplexity")
