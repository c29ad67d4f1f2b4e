"""Imported before `bench.py`: what it compares with is measured in milliseconds, of small arrays."""

from jllama.cli import measure

measure.READ, measure.MATRIX = (64, 1024), 128
