"""Which prompts' next chunks are read by one program."""

import itertools
from collections.abc import Mapping, Sequence

from jllama.batching.stream import Stream
from jllama.engine.scheduler import Job
from jllama.engine.slots import Slots

Streams = Mapping[Job, Stream]


def next_size(slots: Slots, streams: Streams, job: Job) -> int:
    """The size of the program that reads a prompt's next chunk alone."""
    return slots.next_chunk(job.left, scored=streams[job].scores_prompt)


def group_of(slots: Slots, streams: Streams, first: Job, readers: Sequence[Job]) -> list[Job]:
    """Whose chunks are read with the first one's: those of the same size, if there are as many as the program
    takes; where slots pack them, those that end in this turn with it, whatever their sizes.
    """
    if streams[first].scores_prompt:
        return [first]
    size = next_size(slots, streams, first)
    others = [job for job in readers if job is not first and not streams[job].scores_prompt]
    most = slots.group(size) - 1
    if slots.packs:
        return [first, *itertools.islice(_within(slots.turn_tokens - first.left, others), most)]
    alike = (job for job in others if next_size(slots, streams, job) == size)
    group = [first, *itertools.islice(alike, most)]
    return group if len(group) == slots.group(size) else [first]


def _within(room: int, jobs: Sequence[Job]) -> list[Job]:
    """As many of these as have no more tokens left together."""
    some = []
    for job in jobs:
        if job.left <= room:
            some.append(job)
            room -= job.left
    return some
