"""The kinds of vocabularies, and the files that they come in."""
