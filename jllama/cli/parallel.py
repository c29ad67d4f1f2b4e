"""On how many devices and in how many processes a program runs."""

import contextlib
import os
import re
from typing import Any

from absl import flags

from jllama.cli import interrupts
from jllama.cli.numbers import positive
from jllama.cli.streams import say
from jllama.errors import JllamaError

FLAGS = flags.FLAGS


class Followed(Exception):  # noqa: N818
    """The end of a process that follows another one: its work is done."""


def prepare() -> None:
    """Before anything imports JAX: of several processes no line of JAX's own hides what is said.

    Raises:
      JllamaError: a variable says what JAX can't bear.
    """
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not re.fullmatch("-1|0*[1-9][0-9]*", count):
        raise JllamaError(f"JAX_NUM_CPU_DEVICES={count}: give a whole number from 1")
    if "num_processes" in FLAGS:
        from jllama.machine import joining

        if FLAGS.num_processes is not None or joining.under_a_launcher():
            joining.hush()


def join_processes() -> None:
    """Before JAX's first use: joins the other processes, if the flags or Slurm say that there are any.

    Raises:
      JllamaError: they don't say all of it, or one device would hold the whole model in each of them.
    """
    if "num_processes" not in FLAGS:
        return
    from jllama.machine import joining, processes

    if FLAGS.num_processes is not None and devices() == 1:
        raise JllamaError(f"--num_processes={FLAGS.num_processes} wants --tensor_parallel=2 or more, or auto")
    who = FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
    try:
        marks = {"--tensor_parallel": str(devices()), "--dtype": FLAGS.dtype}
        joining.start(*who, device=FLAGS.device, marks=marks, say=say)
    except joining.NobodyCameError as error:
        say(f"error: {error}")
        interrupts.leave(2)
    group = processes.group()
    if group is not None and devices() == 1:
        say(f"note: each of {group.count} processes holds the whole model: give --tensor_parallel")


def follow(config: Any, params: Any, dtype: str) -> None:
    """In all processes but the first: does as that one does, and ends with it.

    Raises:
      Followed: it has ended.
    """
    from jllama.machine import processes

    group = processes.group()
    if group is not None and group.rank > 0:
        from jllama.engine.following import follow

        follow(config, params, dtype)
        raise Followed


def telling() -> contextlib.AbstractContextManager[None]:
    """Where a model is loaded: errors before all processes agree on it are told to all of them."""
    if "num_processes" not in FLAGS:
        return contextlib.nullcontext()
    from jllama.machine import agreement

    return agreement.telling()


def settle() -> None:
    """Behind an error that another process's end may have brought: where it has, this one ends here."""
    if "num_processes" in FLAGS:
        from jllama.machine import processes

        processes.settle()


def devices() -> int | str:
    """What `--tensor_parallel` says; 1 in programs that lack it.

    Raises:
      JllamaError: it is neither a number from 1 nor `auto`.
    """
    given = str(FLAGS["tensor_parallel"].value) if "tensor_parallel" in FLAGS else "1"
    if given == "auto":
        return given
    return positive(given, "--tensor_parallel", ", or auto")
