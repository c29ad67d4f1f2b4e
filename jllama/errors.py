"""The one exception that a user's mistake raises."""


class JllamaError(Exception):
    """A mistake the user can mend: the message says what is wrong and what to do, in a line or two.

    Scripts print it to stderr and exit with code 2; a library caller catches it.
    """
