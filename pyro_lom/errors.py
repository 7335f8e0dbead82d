"""The exception that commands print without a traceback."""


class UserError(Exception):
    """An error that the user can correct.

    The message is one line: the wrong value, its place, and the remedy. Commands print it on stderr and exit with 2.
    """
