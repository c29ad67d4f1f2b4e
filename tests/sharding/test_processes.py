"""Two processes that hold one model together, on one machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from jllama.engine.leading import OPERATIONS
from jllama.engine.plans import packed_call, unpacked_call
from jllama.engine.rows import Piece
from tests.support.decoding import row_of
from tests.support.scripts_helpers import PATIENCE


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def started(rank, port, model, *arguments, devices=1):
    """Process 0 or 1 of two with so many devices each."""
    flags = [f"--tensor_parallel={2 * devices}", "--num_processes=2"]
    flags.append(f"--coordinator_address=127.0.0.1:{port}")
    command = [sys.executable, "-m", "jllama", "generate", f"--model={model}", "--dtype=float32", *flags]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # JAX sets it, in this process too
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*command, f"--process_id={rank}", *arguments], env=environment, **pipes)


def both(model, *arguments, devices=1):
    port = free_port()
    return [started(rank, port, model, *arguments, devices=devices) for rank in range(2)]


def test_two_processes_stream_the_text_of_one(plain_dir):
    """And nothing else, though native code says on stdout whom it has found for four devices."""
    arguments = ("--max_new_tokens=8", "--temperature=0.7", "--seed=3", "Once upon a time")
    alone = [sys.executable, "-m", "jllama", "generate", f"--model={plain_dir}", "--dtype=float32"]
    wanted = subprocess.run([*alone, *arguments], capture_output=True, text=True, check=True).stdout
    two = both(plain_dir, *arguments, devices=2)
    (text, errors), (nothing, more) = [process.communicate() for process in two]
    assert (text, nothing, [process.returncode for process in two]) == (wanted, "", [0, 0]), errors + more
    noise = [line for line in (errors + more).splitlines() if not line.startswith("note: ")]
    assert noise == []


def test_two_processes_with_different_weights_refuse(plain_dir, tmp_path):
    """Of the same shape: else the text would be garbage."""
    other = tmp_path / "other"
    shutil.copytree(plain_dir, other)
    file = other / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + data[len(data) // 2 :].translate(bytes(range(256))[::-1]))
    port = free_port()
    two = [started(rank, port, model, "Once") for rank, model in enumerate((plain_dir, other))]
    for process in two:
        text, said = process.communicate()
        assert (process.returncode, text) == (2, "")
        assert "error: process 1 has another model than process 0" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_waits_for_another_can_be_ended(plain_dir, number, code):
    alone = started(1, free_port(), plain_dir, "Once")
    assert "waiting for process 0 at 127.0.0.1:" in alone.stderr.readline()
    alone.send_signal(number)
    text, said = alone.communicate(timeout=PATIENCE)
    assert (alone.returncode, text, said) == (code, "", "")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_other(plain_dir, killed):
    two = both(plain_dir, "--max_new_tokens=400", "--ignore_eos", "Once upon a time")
    first = two[0].stdout.read(1)  # the answer has begun
    assert first
    two[killed].send_signal(signal.SIGKILL)
    _, said = two[1 - killed].communicate(timeout=PATIENCE)
    assert two[1 - killed].returncode == 3
    assert f"error: process {killed} of 2 has ended: process {1 - killed} ends too" in said
    two[killed].communicate()


def test_a_plan_says_what_it_was_made_of(tiny_config):
    row = row_of(tiny_config, [3, 1], key=(1, 2**32 - 1), stop_ids=[7], temperature=0.5, logit_bias={3: -2.5})
    piece, masks = Piece(1, np.array([4, 5], np.int32), 6, 8), np.array([[-1, 7]], np.int32)
    operation = OPERATIONS.index("begin_together")
    words = packed_call(9, operation, ([(0, row, 1)], None, masks, [piece], True, 2))
    assert words.dtype == np.int32
    slots, same, (beginnings, nothing, bits, pieces, flag, number) = unpacked_call(words, None)
    assert (slots, same, nothing, flag, number) == (9, operation, None, 1, 2)
    ((slot, again, which),) = beginnings
    assert (slot, which, again.limit, list(again.stop_ids)) == (0, 1, row.limit, [7])
    assert np.array_equal(bits, masks)
    assert np.array_equal(again.prompt, row.prompt)
    assert again.key.dtype == np.uint32
    assert np.array_equal(again.key, row.key)
    for name, value in vars(row.sampling).items():
        assert getattr(again.sampling, name).dtype == value.dtype, name
        assert np.array_equal(getattr(again.sampling, name), value), name
    assert (pieces[0].slot, pieces[0].start, pieces[0].context) == (1, 6, 8)
    assert np.array_equal(pieces[0].tokens, piece.tokens)
