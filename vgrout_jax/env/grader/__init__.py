"""The grader of model-written Python: fast, and neither fooled nor escaped by what an answer does.

`worker/` runs inside the sandbox and knows no expected value; everything else runs outside and runs no answer.

pool      the grader: warm, confined workers, and the thread that feeds them
verdict   what goes in and what comes out
extract   the code in a completion
checks    a problem's tests, taken apart: what runs where
answer    the stages of one answer, and its verdict
dispatch  which answer runs in which worker
process   a worker as the grader sees it
layers    which containment a machine offers
folders   temporary folders, and those of killed graders
worker    what runs inside the sandbox
"""

from .pool import Grader
from .verdict import GradeRequest, Verdict

__all__ = ["GradeRequest", "Grader", "Verdict"]
