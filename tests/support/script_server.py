"""Runs scripts in forks of a process that has imported what they need: a real start without the imports.

The command line names the modules to import. Each request is a line of JSON on stdin, each answer one on
stdout. The fork has the request's environment, file descriptors and command line, runs the script as
`__main__` and ends as any Python process does.
"""

import gc
import importlib
import json
import os
import runpy
import sys


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
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    modes = {"stdin": os.O_RDONLY, "stdout": os.O_WRONLY, "stderr": os.O_WRONLY}
    for number, (name, mode) in enumerate(modes.items()):
        os.dup2(os.open(request[name], mode), number)
    sys.stdin = os.fdopen(0, closefd=False)
    return request["argv"]


def preload(modules: list[str]) -> None:
    """Imports alone: a process that has started a backend must not fork."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # else each fork's collector would copy every page of what was imported


preload(sys.argv[1:])
sys.argv = serve()
if os.path.dirname(sys.argv[0]).endswith("scripts"):  # as Python does for a script
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
