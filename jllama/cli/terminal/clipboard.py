"""Puts a text into the clipboard: by the terminal's own sequence, and by a tool where there is one."""

import base64
import shutil
import subprocess

OSC52_AT_MOST = 100_000  # longer sequences are cut or refused by terminals
_TOOLS = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
    ("clip.exe",),
)


def osc52(text: str) -> str:
    """The control sequence that asks a terminal, even a remote one, to copy; "" if the text is too long."""
    code = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return f"\x1b]52;c;{code}\a" if len(code) <= OSC52_AT_MOST else ""


def copy_with_tool(text: str) -> str | None:
    """The name of the first tool that took the text."""
    for tool in _TOOLS:
        if shutil.which(tool[0]) and _runs(tool, text):
            return tool[0]
    return None


def _runs(tool: tuple[str, ...], text: str) -> bool:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            tool, input=text.encode("utf-8", "replace"), stdout=quiet, stderr=quiet, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
