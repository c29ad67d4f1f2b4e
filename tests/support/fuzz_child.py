"""The child process of the fuzz runner: one case at a time, watched from outside."""

import dataclasses
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

PAGE, TICK = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one case."""

    seconds: float  # of CPU time: a busy machine is no hang
    megabytes: int  # beyond what the process had before


class Child:
    """A fork. It answers each case with one line, or dies."""

    def __init__(self, kinds, seed: int, limits: Limits, scratch: Path) -> None:
        self._limits = limits
        self._output = scratch / f"output-{time.monotonic_ns()}"
        read_cases, self._cases = os.pipe()
        self.answers, write_answers = os.pipe()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._cases)
            os.close(self.answers)
            _serve(kinds, seed, limits, scratch, self._output, read_cases, write_answers)
        os.close(read_cases)
        os.close(write_answers)
        os.set_blocking(self.answers, False)
        self.alive, self.case, self.count = True, ("", 0), 0
        self._kinds: set[str] = set()  # those of which a case ran already

    def give(self, name: str, number: int) -> None:
        self.case, self._answer = (name, number), b""
        self.count += 1
        # The first case of a kind may make a model and compile it.
        self._seconds = self._limits.seconds * (1 if name in self._kinds else 10)
        self._kinds.add(name)
        self._base, self._cpu, self._begin = self._resident(), self._cpu_seconds(), time.monotonic()
        os.write(self._cases, f"{name}\t{number}\n".encode())

    def outcome(self) -> tuple[str, str] | None:
        """What the case came to, and a finding's details. None: it runs yet."""
        try:
            data = os.read(self.answers, 1 << 16)
        except BlockingIOError:
            return self._over_limit()
        if not data:
            return self._died()
        self._answer += data
        if not self._answer.endswith(b"\0"):
            return None
        outcome, _, detail = self._answer[:-1].decode("utf-8", "replace").partition("\t")
        return outcome, detail

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self.alive:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        os.close(self._cases)
        os.close(self.answers)

    def _reap(self) -> int:
        self.alive = False
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _died(self) -> tuple[str, str]:
        code = self._reap()
        return "crash", f"exit code {code}\n{self._output.read_text('utf-8', 'replace')[-3000:]}"

    def _over_limit(self) -> tuple[str, str] | None:
        cpu, wall = self._cpu_seconds() - self._cpu, time.monotonic() - self._begin
        if self._resident() - self._base > self._limits.megabytes << 20:
            outcome = "memory"
        elif cpu > self._seconds or wall > 20 * self._seconds:
            outcome = "hang"
        else:
            return None
        os.kill(self._pid, signal.SIGABRT)  # faulthandler says where it is
        _, detail = self._died()
        return outcome, detail

    def _resident(self) -> int:
        return int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * PAGE

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


def _serve(kinds, seed: int, limits: Limits, scratch: Path, output: Path, cases: int, answers: int) -> None:
    """The child's whole life."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable(file, all_threads=False)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    room = now + 4 * (limits.megabytes << 20)  # address space: threads reserve much that they never use
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(cases) as lines:
        for line in lines:
            name, number = line.rstrip("\n").split("\t")
            outcome, detail = _case(kinds[name], f"{seed}:{name}:{number}", scratch)
            answer = f"{outcome}\t{detail}\0".encode("utf-8", "replace")
            while answer:
                answer = answer[os.write(answers, answer) :]
    os._exit(0)


def _case(function, seed: str, scratch: Path) -> tuple[str, str]:
    from jllama.errors import JllamaError

    directory = Path(tempfile.mkdtemp(dir=scratch))
    try:
        error = function(random.Random(seed), directory)
    except JllamaError as raised:
        error = raised
    except BaseException:  # PanicException is no Exception
        return "error", traceback.format_exc()[-3000:]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return "read" if error is None else "refused", ""
