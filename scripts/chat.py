"""The same as `jllama chat`: `python scripts/chat.py --flagfile=…`."""

from jllama.cli.main import run

if __name__ == "__main__":
    run("chat")
