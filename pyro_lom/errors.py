"""The one exception that is told to a person rather than traced."""


class UserError(Exception):
    """A mistake a person can mend: one line that names the offending value, where it is and what to do.

    Commands print it on stderr and exit with code 2.
    """
