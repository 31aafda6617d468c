"""The errors that people see, as one line and never as a traceback."""


class Mistake(Exception):
    """Something the person at the keyboard can put right: exit code 2.

    The message names the place, the value and the remedy.
    """


class Failure(Exception):
    """A run that ended badly through no fault of its settings' form, such as a loss that became NaN: exit code 1."""
