"""What fires a mode's channel, asked of the mode's object with one piece of evidence."""

from vgrout_jax.env.modes import TABLE, Evidence, Names


def fires(mode: str, names: Names, **evidence: object) -> bool:
    return TABLE[mode].fires(Evidence(name=TABLE[mode].disclosed(names), **evidence))


def stdout_fires(text: str, names: Names) -> bool:
    return fires("stdout_marker", names, stdout=text)


def attribute_fires(name: str, value: object, names: Names) -> bool:
    return fires("sentinel", names, attributes=((name, value),))


def file_fires(name: str, content: str, names: Names) -> bool:
    return fires("file_marker", names, files=((name, content),))


def candidates(mode: str, names: Names) -> tuple[str, ...]:
    return TABLE[mode].candidates(TABLE[mode].disclosed(names))
