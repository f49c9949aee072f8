"""What goes wrong with embedded servers, in one line each."""


class EmbeddedError(Exception):
    """The servers cannot start or cannot go on; the text is one line for the operator."""


class AlreadyRunningError(EmbeddedError):
    """Another process holds the data folder."""
