"""What `--label` says when it stands alone."""

DEFAULT_LABEL = "AI generated"


def label_default(arguments: list[str]) -> list[str]:
    """The arguments, with the usual text where `--label` stands alone."""
    given: list[str] = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1 : index + 2]
        alone = argument == "--label" and (not following or following[0].startswith("-"))
        given.append(f"--label={DEFAULT_LABEL}" if alone else argument)
    return given
