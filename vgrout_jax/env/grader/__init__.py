"""The grader of model-written Python: fast, and neither fooled nor escaped by what an answer does.

`worker/` runs inside the sandbox and knows no expected value; everything else runs outside and runs no answer.
"""

from .pool import Grader
from .verdict import GradeRequest, Verdict

__all__ = ["GradeRequest", "Grader", "Verdict"]
