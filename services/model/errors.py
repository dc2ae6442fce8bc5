"""Why a model folder is not served."""

from services.chassis.errors import FailedPrecondition


class ModelRefused(FailedPrecondition):
    """The model folder must not be served.

    `file` is relative to the model folder; `rule` says what is wrong with it, with the key or field where there is one.
    """

    reason = "MODEL_REFUSED"

    def __init__(self, file: str, rule: str) -> None:
        super().__init__(f"{file}: {rule}")
        self.file = file
        self.rule = rule
