"""Why a model folder is not served."""


class ModelRefused(Exception):
    """A model folder that must not be served.

    `file` is relative to the model folder; `rule` says what is wrong with it, with the key or field where there is one.
    """

    def __init__(self, file: str, rule: str) -> None:
        super().__init__(f"{file}: {rule}")
        self.file = file
        self.rule = rule
