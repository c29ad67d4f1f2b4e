"""On how many devices and in how many processes a program runs."""

from typing import Any

from absl import flags

from jllama.cli.numbers import positive

FLAGS = flags.FLAGS


class Followed(Exception):  # noqa: N818
    """The end of a process that follows another one: its work is done."""


def join_processes() -> None:
    """Before JAX's first use: joins the other processes, if the flags or Slurm say that there are any.

    Raises:
      JllamaError: they don't say all of it, or nobody is there.
    """
    if "num_processes" in FLAGS:
        from jllama.machine import processes

        who = FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
        processes.start(*who, device=FLAGS.device)


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


def devices() -> int | str:
    """What `--tensor_parallel` says; 1 in programs that lack it.

    Raises:
      JllamaError: it is neither a number from 1 nor `auto`.
    """
    given = str(FLAGS["tensor_parallel"].value) if "tensor_parallel" in FLAGS else "1"
    if given == "auto":
        return given
    return positive(given, "--tensor_parallel", ", or auto")
