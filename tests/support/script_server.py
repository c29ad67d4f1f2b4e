"""Runs scripts in forks of a process that has imported jax already: a real start without the imports.

Each request is a line of JSON on stdin, each answer one on stdout. The fork has the request's environment,
file descriptors and command line, runs the script as `__main__` and ends as any Python process does.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def serve() -> list[str]:
    """Answers requests until there are none; in a fork, returns the command line to run."""
    answers = os.dup(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(answers)
            return become(request)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, b"%d\n" % code)
    os._exit(0)


def become(request) -> list[str]:
    os.environ.clear()
    os.environ.update(request["env"])
    modes = {"stdin": os.O_RDONLY, "stdout": os.O_WRONLY, "stderr": os.O_WRONLY}
    for number, (name, mode) in enumerate(modes.items()):
        os.dup2(os.open(request[name], mode), number)
    sys.stdin = os.fdopen(0, closefd=False)
    return request["argv"]


def preload() -> None:
    """Imports alone: a process that has started a backend must not fork."""
    import jllama.api
    import jllama.checkpoint
    import jllama.checkpoint.random_weights
    import jllama.text.tokenizer  # noqa: F401


preload()
sys.argv = serve()
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
