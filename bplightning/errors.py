"""The error a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: a name, a value, a file.

    Its message names the thing, the value it got, the rule and the remedy. The command line prints it as one line and
    ends with status 2; from Python it is an ordinary `ValueError`.
    """
