"""The tiny model that the engine's tests ask, and an engine on it."""

from tests.support.instruct import engine as engine
from tests.support.instruct import model as model
