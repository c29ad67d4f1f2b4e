"""The same as `jllama chat`: `python scripts/chat.py --flagfile=…`."""

from jllama.cli import chat, command_line

if __name__ == "__main__":
    command_line.run(chat)
