"""The error that people see."""


class Mistake(Exception):
    """Something the person at the keyboard can put right: shown as one line, exit code 2, no traceback.

    The message names the place, the value and the remedy.
    """
