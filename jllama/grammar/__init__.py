"""Answers that obey: what an answer must match becomes a mask of the tokens that may come next.

`llguidance` reads the schema, regular expression or grammar and says after each token which ones may follow;
it is the extra `[grammar]`. `constraint_for` is the door: a matcher for one answer.
"""
