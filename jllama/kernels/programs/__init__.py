"""Compiled programs under keys of our own: a start that finds them neither traces nor lowers them."""

from jllama.kernels.programs.program import Program as Program
from jllama.kernels.programs.program import kept as kept
from jllama.kernels.programs.shelf import expect as expect
