"""The exception that commands print without a traceback, and the form in which foreign text is printed."""

_LONGEST = 1000  # characters of a message; names in files can be megabytes long


class UserError(Exception):
    """An error that the user can correct.

    The message is one line: the wrong value, its place, and the remedy. Commands print it on stderr and exit with 2.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return `text` as one line: control characters and line breaks are escaped, and the middle of a long text is cut.

    Names of files, and names in files, may contain anything, such as commands to the terminal.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
