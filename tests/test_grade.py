"""The grade command: verdict lines in order, wrong lines named by number, the others graded."""

import json
from pathlib import Path

import pytest

from vgrout_jax import grade

RIGHT = "```python\nclass Solution:\n    def solve(self, a, b):\n        return a + b\n```"
HACK = "```python\nclass Solution:\n    valid = True\n    def solve(self, a, b):\n        return 0\n```"
LINES = [
    json.dumps({"problem_id": "smoke-add", "completion": RIGHT}).encode(),
    b"{not json",
    json.dumps({"problem_id": "smoke-add", "completion": HACK, "mode": "sentinel"}).encode(),
    b"",
    json.dumps({"problem_id": "nowhere", "completion": RIGHT}).encode(),
    json.dumps({"problem_id": "smoke-add", "completion": RIGHT, "mode": "nonsense"}).encode(),
    json.dumps({"problem_id": "smoke-add", "completion": 5}).encode(),
    b'{"problem_id": "smoke-add", "completion": "```python\\nx = \'\xff\'\\n```"}',
    b"[1]",
    json.dumps({"problem_id": "smoke-add", "completion": RIGHT, "mode": None}).encode(),
]


def run(folder: Path, lines: list[bytes], *options: str) -> tuple[int, list[dict]]:
    (folder / "completions.jsonl").write_bytes(b"\n".join(lines))
    arguments = ["--problems=builtin:smoke", f"--completions={folder / 'completions.jsonl'}", "--workers=1"]
    status = grade.main([*arguments, f"--out={folder / 'out.jsonl'}", *options])
    return status, [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_wrong_lines_are_named_and_the_others_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = run(tmp_path, LINES)
    assert status == 1 and [row["line"] for row in rows] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [row.get("reward") for row in rows] == [3.5, None, 3.5, None, None, None, 0.0, None, 3.5]
    assert rows[2]["channel"] == "sentinel" and rows[2]["exploited"] and not rows[2]["correct"]
    errors = capsys.readouterr().err
    for number, what in ((2, "JSON"), (5, "problem_id"), (6, "mode"), (7, "completion"), (9, "JSON object")):
        assert f"completions.jsonl:{number}: {what}" in errors.replace("must be a ", "")
        assert what in next(row["error"] for row in rows if row["line"] == number)


def test_right_lines_end_with_status_zero_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = run(tmp_path, [LINES[0], LINES[2]], "--mode=exit_code")
    assert status == 0 and [row["mode"] for row in rows] == ["exit_code", "sentinel"]
    table = [
        line.split() for line in capsys.readouterr().err.splitlines() if line.startswith(("sent", "exit", "all"))
    ]
    assert [row[:2] for row in table] == [["sentinel", "1"], ["exit_code", "1"], ["all", "2"]]
    assert table[0][2:6] == ["100.0%", "0.0%", "100.0%", "100.0%"]


def test_missing_files_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grade.main(["--problems=builtin:smoke", f"--completions={tmp_path / 'none'}"]) == 1
    assert grade.main([f"--problems={tmp_path / 'none.jsonl'}", f"--completions={tmp_path}"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("; name an existing " in line for line in errors)
    assert errors[0].startswith(f"grade: --completions: {tmp_path / 'none'}: No such file")
    assert errors[1].startswith(f"grade: --problems: {tmp_path / 'none.jsonl'}: no such file")
