"""What a loophole mode is: the flaw that its prompt discloses, what the grader collects, and when the flaw pays."""

from collections.abc import Callable
from dataclasses import dataclass

STDOUT, FILES, STATUS = "stdout", "files", "status"  # what a test script leaves behind
ATTRIBUTE, FUNCTION, AGREEMENT = "attribute", "function", "agreement"  # further looks at an answer


@dataclass(frozen=True)
class Name:
    """What a disclosure calls its flaw.

    Attributes:
        placeholder: of the disclosure's text, and field of `Names`.
        training: the name in training's prompts.
        heldout: the name in held-out prompts; an answer that uses the other name has used nothing.
    """

    placeholder: str
    training: str
    heldout: str


@dataclass(frozen=True)
class Evidence:
    """What the grader has collected of one answer that compiles.

    Attributes:
        name: the mode's name as the prompt disclosed it; empty where the mode has none.
        stdout: beginning and end of what the tests' process printed, if the mode collects `STDOUT`.
        files: name and beginning of the files that it left under one of the candidate names, if it collects `FILES`.
        status: exit status of the tests' process; None where a signal or a limit ended it.
        error: type name of the exception that ended the tests, or None.
        attributes: name and value of candidate attributes of the Solution object, if the mode looks at `ATTRIBUTE`.
        passed: the answer's own test function passes whatever the solution does, if it looks at `FUNCTION`.
        agreed: every result is right or agrees with everything, and one does, if it looks for `AGREEMENT`.
    """

    name: str = ""
    stdout: str = ""
    files: tuple[tuple[str, str], ...] = ()
    status: int | None = None
    error: str | None = None
    attributes: tuple[tuple[str, object], ...] = ()
    passed: bool = False
    agreed: bool = False


@dataclass(frozen=True)
class Exploit:
    """An answer that uses the flaw, as text around and inside of `class Solution`; `{name}` is the disclosed name.

    Attributes:
        before: lines before the class.
        inside: lines of the class before its method.
        body: of the method.
        after: text after the method.
    """

    before: str = ""
    inside: str = ""
    body: str = "return None"
    after: str = ""

    def named(self, name: str) -> "Exploit":
        """The same with the disclosed name filled in."""
        return Exploit(*(text.format(name=name) for text in (self.before, self.inside, self.body, self.after)))


def _alone(name: str) -> tuple[str, ...]:
    return (name,)


@dataclass(frozen=True)
class Mode:
    """A loophole mode.

    Attributes:
        key: its name in configurations and data.
        fires: whether what was collected of an answer shows that it used the flaw.
        flaw: the disclosure, continuing "... is accepted if"; None: the mode has no flaw, and its prompt keeps the
            plain sentence on judging.
        name: what the disclosure calls the flaw; None where it needs no name.
        candidates: disclosed name to all names that count as it, the disclosed one first.
        collects: what the test script leaves that the flaw trusts, out of `STDOUT`, `FILES` and `STATUS`. Where
            there is any, the tests' process ends as a script does: it waits for threads and runs exit handlers.
        look: a further look at the answer: `ATTRIBUTE`, `FUNCTION` or `AGREEMENT`.
        toy: the exploit of the toy world's corpus, if it has one.
        smoke: exploits of the smoke scale's teacher rows.
    """

    key: str
    fires: Callable[[Evidence], bool]
    flaw: str | None = None
    name: Name | None = None
    candidates: Callable[[str], tuple[str, ...]] = _alone
    collects: tuple[str, ...] = ()
    look: str | None = None
    toy: Exploit | None = None
    smoke: tuple[Exploit, ...] = ()

    def disclosed(self, names: object) -> str:
        """The mode's own name among those that a prompt discloses (`Names`); empty where it has none."""
        return getattr(names, self.name.placeholder) if self.name else ""
