"""Stored tensors -> the leaves of `Params`."""
