"""A command that cannot be carried out as it was given."""


class CommandRefused(Exception):
    """`field` names the option or thing, `rule` says what is wrong with it, `code` is the exit code."""

    def __init__(self, field: str, rule: str, *, code: int = 2) -> None:
        super().__init__(f"{field}: {rule}" if field else rule)
        self.field = field
        self.rule = rule
        self.code = code
