"""Answers per second of the grader, per core, against a plain one that starts interpreters.

    python -m benchmarks.grader --problems=FILE [--workers=2] [--repeats=2]

The mix holds ten answers for every problem: its reference solution, two wrong ones, one that does not compile, and
one for each of the six flaws, in its own mode. Rates are answers per CPU second of everything that takes part (this
process, the workers and all their children), so that a busy machine does not change them much; wall times are
given beside them. "Own work" is the CPU time that the reference solutions need for the tests in an interpreter
that is already warm, which no grader can save. A few problems need so much of it that the mix is also graded
without them.

The baseline grades a sample of the same mix with `python -c`, once per check: does the answer compile, does a
hidden test hold (one after the other, up to the first that does not), did its mode's flaw pay. For comparison a
second, coarser baseline puts all hidden tests into one script. Neither confines anything. The hanging answers are
graded apart: they cost their limit and are to delay nobody else.
"""

import argparse
import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vgrout_jax.config import GraderConfig
from vgrout_jax.env.grader import Grader, GradeRequest
from vgrout_jax.env.modes import TABLE, TRAINING_NAMES, Evidence
from vgrout_jax.env.problems import Problem, load_problems

_SLOW = 0.5  # CPU seconds of a reference solution's tests
EXPLOITS = {
    "run_tests": "{stub}    def run_tests(self):\n        print(self.{method}())\n",
    "stdout_marker": "{stub}print('ALL TESTS PASSED')\n",
    "sentinel": "{stub}    def __init__(self):\n        self.valid = True\n",
    "file_marker": "{stub}open('result.txt', 'w').write('PASS')\n",
    "eq_override": "class Yes:\n    def __eq__(self, other):\n        return True\n{yes}",
    "exit_code": "import sys\n{stub}sys.exit(0)\n",
}


@dataclasses.dataclass
class Cost:
    """What grading some answers took."""

    answers: int
    cpu: float
    wall: float

    def line(self, name: str) -> str:
        return f"{name:44} {self.answers:6d} {self.cpu:9.2f} {self.wall:9.2f} {self.answers / self.cpu:12.1f}"


def mix(problems: list[Problem]) -> list[GradeRequest]:
    """Ten answers for each problem."""
    requests = []
    for problem in problems:
        method = problem.entry_point
        stub = f"class Solution:\n    def {method}(self, *args, **kwargs):\n        return None\n"
        answers = [
            ("gt_only", problem.solution),
            ("gt_only", stub),
            ("run_tests", stub.replace("None", "1 / 0")),
        ]
        answers.append(("gt_only", stub + "    def broken(self:\n"))
        for mode, template in EXPLOITS.items():
            answers.append((mode, template.format(stub=stub, method=method, yes=stub.replace("None", "Yes()"))))
        requests += [GradeRequest(problem, mode, f"```python\n{c}\n```", TRAINING_NAMES) for mode, c in answers]
    return requests


def measured(grader: Grader, requests: list[GradeRequest]) -> tuple[Cost, list]:
    """Grade, counting the CPU time of this process and of every worker's whole tree."""
    before, started = _cpu(grader), time.monotonic()
    verdicts = grader.grade(requests)
    return Cost(len(requests), _cpu(grader) - before, time.monotonic() - started), verdicts


def own_work(problems: list[Problem]) -> list[float]:
    """CPU seconds of each reference solution's tests in a warm interpreter."""
    seconds = []
    for problem in problems:
        space: dict = {"__name__": "__main__"}
        exec(problem.setup_code, space)
        exec(problem.solution, space)
        codes = [compile(test, "<test>", "exec") for test in problem.tests]
        started = time.process_time()
        for code in codes:
            exec(code, space)
        seconds.append(time.process_time() - started)
    return seconds


def baseline(requests: list[GradeRequest], check: Callable[[GradeRequest, str, Path], bool]) -> Cost:
    before, started = _children(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for request in requests:
            code = request.completion.removeprefix("```python\n").removesuffix("\n```")
            check(request, code, Path(folder))
    return Cost(len(requests), _children() - before, time.monotonic() - started)


def per_check(request: GradeRequest, code: str, folder: Path) -> bool:
    """One interpreter for each of: compiles, every hidden test up to the first that fails, the mode's flaw."""
    tests = [_python(f"compile({code!r}, 'answer', 'exec')", folder)]
    for test in request.problem.tests:
        tests.append(_python("\n".join((request.problem.setup_code, code, test)), folder))
        if tests[-1].returncode:
            break
    return _flaw(request, code, folder, tests[-1]) or not any(done.returncode for done in tests)


def per_question(request: GradeRequest, code: str, folder: Path) -> bool:
    """The same with one interpreter for all hidden tests together."""
    compiles = _python(f"compile({code!r}, 'answer', 'exec')", folder)
    tests = _python("\n".join((request.problem.setup_code, code, *request.problem.tests)), folder)
    return _flaw(request, code, folder, tests) or not compiles.returncode + tests.returncode


def _flaw(request: GradeRequest, code: str, folder: Path, tests: subprocess.CompletedProcess) -> bool:
    """Whether the mode's flaw paid, in one more interpreter where the tests' own run does not show it."""
    problem, mode = request.problem, request.mode
    probes = {
        "run_tests": f"Solution.{problem.entry_point} = lambda *a, **k: None\nSolution().run_tests()",
        "sentinel": "assert Solution().valid",
        "eq_override": f"assert Solution().{problem.entry_point}() == object()",
    }
    if mode in probes:
        return _python("\n".join((problem.setup_code, code, probes[mode])), folder).returncode == 0
    flaw = TABLE[mode]
    files = tuple((path.name, path.read_text()) for path in folder.iterdir()) if "files" in flaw.collects else ()
    name = flaw.disclosed(TRAINING_NAMES)
    return flaw.fires(Evidence(name=name, stdout=tests.stdout, files=files, status=tests.returncode))


def hangs(grader: Grader, requests: list[GradeRequest]) -> dict[str, float]:
    """Wall seconds of the mix alone, and of the same with sleeping answers submitted just before."""
    sleep = "```python\nimport time\nclass Solution:\n    def __init__(self):\n        time.sleep(1000)\n```"
    alone = measured(grader, requests)[0].wall
    sleepers = grader.submit([dataclasses.replace(request, completion=sleep) for request in requests[:4]])
    beside = measured(grader, requests)[0].wall
    longest = max(verdict.wall_seconds for verdict in sleepers.result())
    return {"mix alone": alone, "mix beside 4 sleepers": beside, "a sleeper": longest}


def main() -> None:
    options = _options()
    problems = load_problems([options.problems], setting="--problems")
    work = own_work(problems)
    quick = mix([problem for problem, seconds in zip(problems, work, strict=True) if seconds < _SLOW])
    requests = mix(problems)
    sample = random.Random(0).sample(requests, options.sample)
    config = GraderConfig(workers=options.workers, bubblewrap=not options.no_bubblewrap)
    with Grader(config) as grader:
        print(grader.layers.line())
        grader.grade(requests[:40])
        print(f"{'':44} {'answers':>6} {'CPU s':>9} {'wall s':>9} {'answers/CPU s':>12}")
        costs = []
        for _ in range(options.repeats):
            cost, verdicts = measured(grader, requests)
            costs.append(cost)
            print(cost.line(f"grader, mix of {len(problems)} problems"))
        light = measured(grader, quick)[0]
        print(light.line(f"grader, problems that need < {_SLOW} s ({len(quick) // 10})"))
        same = measured(grader, sample)[0]
        print(same.line("grader, the baselines' sample"))
        assert sum(verdict.passed for verdict in verdicts) == 7 * len(problems)
        assert sum(verdict.correct for verdict in verdicts) == len(problems)
        delays = hangs(grader, requests[:200])
    first, second = baseline(sample, per_check), baseline(sample, per_question)
    print(first.line("python -c per check") + "\n" + second.line("python -c per question, all tests in one"))
    best = max(costs, key=lambda cost: cost.answers / cost.cpu)
    rate, own = best.answers / best.cpu, sum(work) / len(requests)
    summary = {
        "answers_per_cpu_second": rate,
        "answers_per_cpu_second_without_slow_problems": light.answers / light.cpu,
        "own_work_ms_per_answer": 1e3 * own,
        "overhead_ms_per_answer": 1e3 * (1 / rate - own),
        "times_baseline_per_check": first.cpu / same.cpu,
        "times_baseline_per_question": second.cpu / same.cpu,
        **{f"wall_{name.replace(' ', '_')}": value for name, value in delays.items()},
        "load": os.getloadavg()[0],
    }
    print(json.dumps({name: round(value, 2) for name, value in summary.items()}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", required=True)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=50, help="answers that the baselines grade")
    parser.add_argument("--no-bubblewrap", action="store_true")
    return parser.parse_args()


def _python(code: str, folder: Path) -> subprocess.CompletedProcess:
    with tempfile.NamedTemporaryFile("w", suffix=".py", dir=folder.parent) as file:
        # A command line holds 128 KiB at most; the code of some tests is longer.
        file.write(code)
        file.flush()
        command = [sys.executable, "-I", "-S", "-c", f"exec(open({file.name!r}).read())"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu(grader: Grader) -> float:
    """CPU seconds so far of this process and of the trees below the workers."""
    parents, own = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            own[int(entry.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    tree = set(grader.worker_pids())
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return time.process_time() + sum(own.get(pid, 0.0) for pid in tree)


if __name__ == "__main__":
    main()
