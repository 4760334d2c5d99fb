"""The reader of profiles, on profiles that are written here by hand."""

import gzip
import json
import sys

import pytest

from benchmarks import profile_picture


def message(*parts: tuple[int, bytes | int]) -> bytes:
    """Protocol buffers' wire format, written out anew."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)

    out = b""
    for number, value in parts:
        kind = 0 if isinstance(value, int) else 2
        out += varint(number * 8 + kind) + (varint(value) if kind == 0 else varint(len(value)) + value)
    return out


def space_of(program: str, scope_of: dict[str, str]) -> bytes:
    """An XSpace message with one program's HLO."""
    instructions = [
        (2, message((1, name.encode()), (2, b"dot"), (7, message((2, scope.encode())))))
        for name, scope in scope_of.items()
    ]
    module = message((1, program.encode()), (3, message((1, b"main"), *instructions)))
    statistic = message((1, 300), (6, message((1, module))))
    metadata = message((1, 9), (2, message((1, 9), (2, b"program"), (5, statistic))))
    return message((1, message((2, b"/host:CPU"))), (1, message((1, 5), (2, b"/host:metadata"), (4, metadata))))


def event(name: str, begin: float, seconds: float, thread: int = 1, program: str = "jit_step") -> dict:
    arguments = {"hlo_op": name, "hlo_module": program}
    return {
        "ph": "X",
        "pid": 1,
        "tid": thread,
        "ts": 1e6 * begin,
        "dur": 1e6 * seconds,
        "name": name,
        "args": arguments,
    }


def test_the_scopes_of_operations_are_read_from_the_profile():
    space = space_of("jit_step", {"dot.1": "jit(step)/jvp(Qwen3)/layers/mlp/dot_general", "x" * 200: "a"})
    assert profile_picture.scopes(space) == {
        ("jit_step", "dot.1"): "jit(step)/jvp(Qwen3)/layers/mlp/dot_general",
        ("jit_step", "x" * 200): "a",
    }


def test_an_operations_seconds_are_without_those_inside_of_it_and_loops_have_none():
    events = [event("while.1", 0, 10), event("fusion.2", 1, 6), event("dot.3", 2, 3), event("dot.4", 5, 1)]
    events += [event("dot.5", 8, 1), event("dot.6", 0, 4, thread=2)]
    found = {operation.name: operation.seconds for operation in profile_picture.operations(events)}
    assert found == pytest.approx({"fusion.2": 2, "dot.3": 3, "dot.4": 1, "dot.5": 1, "dot.6": 4})
    step = {"ph": "X", "pid": 1, "tid": 7, "ts": -1e6, "dur": 13e6, "name": "$train.py:1 train_step", "args": {}}
    assert profile_picture.step_seconds([*events, step]) == pytest.approx((13, 3))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/while/body/transpose(jvp(Qwen3))/while/body/layers/mlp/dot_general", "feed-forward, backward"),
        ("jit(step)/while/body/jvp(Qwen3)/while/body/layers/attention/dot_general", "attention, forward"),
        (
            "jit(step)/x/transpose(jvp(Qwen3))/layers/checkpoint/rematted_computation/mlp/exp",
            "feed-forward, recomputed",
        ),
        ("jit(step)/while/body/jvp(Qwen3)/layers/attention/NTD,RD->NTR/dot_general", "adapter, forward"),
        ("jit(step)/while/body/jvp()/while/body/closed_call/jit(take_along_axis)/gather", "logits, forward"),
        ("jit(step)/ge", "rest"),
    ],
)
def test_scopes_tell_the_part_of_the_model(path, part):
    assert profile_picture.part_of("jit_step", path) == ("update", part)


def test_kernels_of_a_graph_are_told_apart_by_their_names():
    kernels = {"nvjet_sm90_tst": 4, "loop_add_fusion": 3, "cudnn_generated_sdpa_fprop": 2, "sm90_xmma_gemm_tf32": 1}
    events = [
        event("command_buffer_1", 10 * place, seconds) | {"name": name}
        for place, (name, seconds) in enumerate(kernels.items())
    ]
    found = profile_picture.grouped(profile_picture.operations(events), {})
    kinds = ("matrix products", "other kernels", "attention, forward", "matrix products in TF32")
    assert list(found) == [("update", kind) for kind in kinds]
    assert list(found.values()) == pytest.approx([4, 3, 2, 1])


def test_the_picture_is_drawn_from_the_files_of_a_profile(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run" / "profile" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    events = [event("dot.1", 0, 2), event("dot.2", 3, 1, program="jit_advance")]
    (folder / "host.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    (folder / "host.xplane.pb").write_bytes(
        space_of("jit_step", {"dot.1": "jit(step)/jvp(Qwen3)/layers/mlp/dot_general"})
    )
    picture, figures = tmp_path / "p.png", tmp_path / "p.json"
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "run"), f"--out={picture}", f"--json={figures}"])
    profile_picture.main()
    found = json.loads(figures.read_text())
    assert found["wall_s"] == pytest.approx(4) and found["idle_s"] == pytest.approx(1)
    assert found["parts"][0] == {"phase": "update", "part": "feed-forward, forward", "seconds": pytest.approx(2)}
    assert picture.stat().st_size > 5000 and "feed-forward" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["x", str(picture.parent / "nothing")])
    with pytest.raises(SystemExit, match="holds no profile"):
        profile_picture.main()
