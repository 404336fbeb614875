"""What the user can mend: any other error is a fault of ours, and shows where it was."""


class UserError(ValueError):
    """Something that was given cannot be worked with; the message says what, and what to do."""
