"""What the command line tells its user without a traceback."""


class UserError(Exception):
    """A mistake the user can mend: printed as it is, exit status 2."""
