"""The resume state: every bit comes back, damage is found, a full disk costs a state and no more."""

import dataclasses
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import interrupted, tiny
from vgrout_jax.rl import divergence
from vgrout_jax.rl.collapse import Memory
from vgrout_jax.rl.optim import make_optimizer
from vgrout_jax.rl.state import initial_state
from vgrout_jax.routing import direction
from vgrout_jax.run import continuation, progress, snapshots
from vgrout_jax.run.progress import Progress

CONFIG = tiny.config()


@pytest.fixture(scope="module")
def whole():
    """A state in which every array differs from every other, and the frozen model that it belongs to."""
    frozen = tiny.frozen(tiny.model())
    like = initial_state(frozen.init, make_optimizer(CONFIG.optim, 10), tiny.mesh())
    drawn = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == jnp.int32:
            return jnp.asarray(drawn.integers(1, 2**31 - 1, leaf.shape), jnp.int32)
        # Every bit pattern counts: subnormal numbers and negative zeros too.
        bits = drawn.integers(0, 2**32, leaf.shape, np.uint32) & np.uint32(0xBFFFFFFF)
        return jnp.asarray(bits.view(np.float32))

    state = jax.tree.map(fill, like)
    modules = 14

    def bands():
        edges = [jnp.asarray(drawn.normal(size=modules), jnp.float32) for _ in range(3)]
        return direction.Bands(*edges, jnp.asarray(drawn.random(modules) < 0.5), jnp.int32(drawn.integers(14)))

    vectors = [jnp.asarray(drawn.normal(size=(modules, tiny.RANK)), jnp.float32) for _ in range(2)]
    routing = direction.Routing(vectors[0], bands(), direction.Routing(vectors[1], bands()))
    good = jax.tree.map(fill, like.deltas)
    memory = Memory(equal_rewards=3, cut_off=1, best={"solve": [4, 0.5, 0.1]})
    watch = divergence.Guard(CONFIG.guard, best=-1.2345678901234567, low_steps=1)
    return Progress(7, state, watch, (good, 6), routing, 0.25, 11, memory), like, frozen


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def identity(frozen) -> dict:
    return progress.identity_of(CONFIG, {"pairs_sha256": "ab"}, frozen)


def stored(folder: Path, whole, *, step: int = 7, keep: int = 3) -> None:
    store = snapshots.Store(folder, keep=keep)
    store.save(dataclasses.replace(progress.to_snapshot(whole[0], identity(whole[2])), step=step))
    store.wait()
    store.close()


def test_every_bit_of_what_a_step_carries_comes_back(whole, tmp_path):
    before, like, _ = whole
    stored(tmp_path, whole)
    snapshot = snapshots.newest(tmp_path)
    after = progress.from_snapshot(snapshot, CONFIG, like, whole[0].memory)
    assert bits((after.state, after.good[0], after.memory)) == bits((before.state, before.good[0], before.memory))
    structure = jax.tree.structure((before.state, before.good[0], before.memory))
    assert jax.tree.structure((after.state, after.good[0], after.memory)) == structure
    assert jax.tree.map(lambda x: x.sharding, after.state) == jax.tree.map(lambda x: x.sharding, like)
    plain = ("step", "watch", "direction_seconds", "live_groups", "collapse")
    assert [getattr(after, name) for name in plain] == [getattr(before, name) for name in plain]
    assert after.good[1] == 6


def test_what_was_never_set_comes_back_as_never_set(whole, tmp_path):
    _, like, frozen = whole
    fresh = Progress(0, like, divergence.Guard(CONFIG.guard))
    stored(tmp_path, (fresh, like, frozen), step=0)
    after = progress.from_snapshot(snapshots.newest(tmp_path), CONFIG, like, whole[0].memory)
    assert (after.good, after.memory, after.direction_seconds) == (None, None, None)
    assert after.watch == divergence.Guard(CONFIG.guard) and after.collapse == Memory()


def test_a_snapshot_is_a_copy(whole, tmp_path):
    """On the CPU an array can be read without one; the step that follows takes its memory."""
    _, like, _ = whole
    state = jax.tree.map(jnp.copy, like)
    snapshot = snapshots.pack(state)
    expected = {name: leaf.copy() for name, leaf in snapshot.items()}
    moved = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(state)
    jax.block_until_ready(moved)
    for name, leaf in snapshot.items():
        np.testing.assert_array_equal(leaf, expected[name])
        assert leaf.flags.owndata


def test_writing_does_not_hold_up_the_run_and_one_state_follows_another(whole, tmp_path, monkeypatch):
    original, release, order = snapshots.write_arrays, threading.Event(), []

    def slow(folder, arrays):
        order.append(folder.parent.name)
        release.wait(60)
        original(folder, arrays)

    monkeypatch.setattr(snapshots, "write_arrays", slow)
    store = snapshots.Store(tmp_path / "resume", keep=3)
    first, second = (dataclasses.replace(progress.to_snapshot(whole[0], {}), step=step) for step in (1, 2))
    store.save(first)  # returns, though nothing is on disk
    assert continuation.state_steps(tmp_path / "resume") == []
    threading.Timer(0.2, release.set).start()
    store.save(second)  # waits for the one before
    assert continuation.state_steps(tmp_path / "resume")[:1] == [1]
    store.close()
    assert continuation.state_steps(tmp_path / "resume") == [1, 2] and order == [".000001.tmp", ".000002.tmp"]


def test_the_newest_few_are_kept(whole, tmp_path):
    for step in range(1, 6):
        stored(tmp_path, whole, step=step, keep=2)
    assert continuation.state_steps(tmp_path) == [4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004", "000005"]
    snapshots.Store(tmp_path, keep=1).close()  # a kill may come before the clearing
    assert continuation.state_steps(tmp_path) == [5]


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:middle])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "gone"])
def test_any_damaged_file_is_found_and_the_state_before_is_used(whole, tmp_path, kind, caplog):
    """Every file of the newer state in turn; the warning names the damaged state and the one that is used."""
    for step in (4, 7):
        stored(tmp_path / "whole", whole, step=step)
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "000007").rglob("*")]
    names = [name for name in names if (tmp_path / "whole" / name).is_file()]
    assert len(names) > 5
    for name in names:
        if (tmp_path / "whole" / name).stat().st_size == 0 and kind != "gone":
            continue
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / name, kind)
        caplog.clear()
        assert snapshots.newest(folder).step == 4, name
        [record] = caplog.records
        assert str(folder / "000007") in record.message and f"using {folder / '000004'} instead" in record.message
        assert name.name in record.message
        shutil.rmtree(folder)


def test_a_manifest_that_was_edited_is_found(whole, tmp_path):
    stored(tmp_path, whole)
    path = tmp_path / "000007" / "manifest.json"
    text = path.read_text()
    assert text.count('"live_groups": 11') == 1
    path.write_text(text.replace('"live_groups": 11', '"live_groups": 12'))
    with pytest.raises(snapshots.Damaged, match="manifest.json has another checksum"):
        snapshots.read(tmp_path, 7)


def test_where_every_state_is_damaged_nothing_starts_again(whole, tmp_path):
    for step in (4, 7):
        stored(tmp_path, whole, step=step)
        (tmp_path / f"{step:06d}" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="000007 is damaged .*000004 is damaged .*the run cannot continue"):
        snapshots.newest(tmp_path)
    assert snapshots.newest(tmp_path / "empty") is None


def test_a_state_of_another_format_is_refused(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "FORMAT", 99)
    stored(tmp_path, whole)
    monkeypatch.undo()
    remedy = "continue the run with the version that began it, or choose another workdir"
    with pytest.raises(ValueError, match=f"has format 99, this version reads 2: {remedy}"):
        snapshots.newest(tmp_path)


def test_a_full_disk_costs_a_state_and_names_the_one_that_remains(whole, tmp_path, monkeypatch, caplog):
    stored(tmp_path, whole, step=4)

    def full(folder, arrays):
        folder.mkdir()
        (folder / "part").write_text("some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "write_arrays", full)
    store = snapshots.Store(tmp_path, keep=3)
    store.save(dataclasses.replace(progress.to_snapshot(whole[0], {}), step=7))
    message = "resume state of step 7 could not be written .No space left on device.; the last one is that of step 4"
    with pytest.raises(OSError, match=message):
        store.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004"]  # no part of it is left
    store.save(dataclasses.replace(progress.to_snapshot(whole[0], {}), step=8))
    store._pending[1].exception(timeout=60)
    monkeypatch.undo()
    store.save(dataclasses.replace(progress.to_snapshot(whole[0], {}), step=9))
    store.close()
    assert "step 8 could not be written" in caplog.text and "the run goes on" in caplog.text
    assert continuation.state_steps(tmp_path) == [4, 9]


def test_a_real_disk_that_is_full_is_one_line(whole, tmp_path):
    """A file system of a megabyte, in a mount namespace of its own."""
    script = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from vgrout_jax.run import snapshots\n"
        "store = snapshots.Store(Path(sys.argv[1]) / 'resume', keep=2)\n"
        "noise = np.random.default_rng(0).integers(0, 255, 3 << 20).astype(np.uint8)\n"
        "store.save(snapshots.Snapshot(1, {'small': noise[:1000]}, {})); store.wait()\n"
        "store.save(snapshots.Snapshot(2, {'large': noise}, {}))\n"
        "try: store.wait()\n"
        "except OSError as error: print(error)\n"
        "print(snapshots.newest(Path(sys.argv[1]) / 'resume').step)\n"
    )
    (tmp_path / "script.py").write_text(script)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{sys.executable} {tmp_path}/script.py {disk} {interrupted.ROOT}"
    inner = f"mount -t tmpfs -o size=1m none {disk} && exec {command}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner], capture_output=True, text=True
    )
    if "mount" in done.stderr and done.returncode:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()[-2:]
    assert first.startswith("the resume state of step 2 could not be written (") and "No space left" in first
    assert first.endswith("the last one is that of step 1") and second == "1"


def test_what_an_interrupted_write_left_is_removed(whole, tmp_path):
    stored(tmp_path, whole)
    for name in (".000009.tmp", ".000002.old"):
        (tmp_path / name / "arrays").mkdir(parents=True)
    snapshots.Store(tmp_path, keep=3).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000007"]


def test_arrays_of_another_shape_are_refused_by_name(whole, tmp_path):
    before, like, _ = whole
    arrays = snapshots.pack({"state": before.state})
    name = "state.deltas.b.v_proj"
    for wrong in (arrays[name][:, :, :2], arrays[name].astype(np.float64)):
        with pytest.raises(ValueError, match=f"belongs to another model: {name} is float(32|64)\\["):
            snapshots.unpack({**arrays, name: wrong}, {"state": like})
    del arrays[name]
    with pytest.raises(ValueError, match=f"{name} is nothing there"):
        snapshots.unpack(arrays, {"state": like})


def test_other_weights_and_another_generator_are_refused(whole):
    frozen = whole[2]
    then = identity(frozen)
    progress.check_identity(Path("r"), then, identity(frozen))
    base = jax.tree.map(lambda leaf: leaf * 1.5, frozen.base)
    with pytest.raises(ValueError, match="resume state r belongs to another model: base"):
        progress.check_identity(Path("r"), then, identity(frozen.replace(base=base)))
    init = frozen.init.replace(b={**frozen.init.b, "o_proj": frozen.init.b["o_proj"] + 1e-5})
    with pytest.raises(ValueError, match="init.b.o_proj is not what it was"):
        progress.check_identity(Path("r"), then, identity(frozen.replace(init=init)))


def test_another_version_is_a_warning_that_names_it(whole, caplog):
    then = identity(whole[2])
    then["machine"]["jax"] = "0.1"
    progress.check_identity(Path("r"), then, identity(whole[2]))
    assert f"jax 0.1 -> {jax.__version__}" in caplog.text and "last bits" in caplog.text
