"""The figures of the house are those of the sources that they are read from."""

from pathlib import Path

from benchmarks import house

MODULES = {
    "__init__.py": "",
    "main.py": 'from vgrout_jax.train import train\nif __name__ == "__main__":\n    train()\n',
    "train.py": "from vgrout_jax.rl import step\n\n\ndef train():\n    step.run()\n",
    "sft.py": "def later():\n    from vgrout_jax import main\n\n    return main\n",
    "rl/__init__.py": "",
    "rl/step.py": "from .loss import value\n\n\ndef run(a, b, c, d, e, f, *, g=1):\n"
    '    """Says."""\n\n    # why\n    return value(a)\n',
    "rl/loss.py": "def value(config: Config):\n    from vgrout_jax.rl import step\n\n    return step, 'absorb'\n",
}


def write(root: Path) -> None:
    for name, text in MODULES.items():
        path = root / "vgrout_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "docs" / "howto").mkdir(parents=True)
    edits = ("vgrout_jax/arms/a.py", "vgrout_jax/arms/a.py", "configs/a.py")
    page = "".join(f"```diff {name}\n+{number}\n```\n" for number, name in enumerate(edits))
    (root / "docs" / "howto" / "new-arm.md").write_text(page)
    (root / "README.md").write_text("one\ntwo\n")


def test_a_made_up_house_has_the_figures_that_were_built_into_it(tmp_path):
    write(tmp_path)
    found = house.measure(tmp_path)
    expected = {
        "modules in the root": 3,
        "rooms": 4,
        "imports between rooms": 3,  # main to train, train to rl, sft to main
        "imports of a command or of the loop": 1,  # that of sft; main may import train
        "circles": 1,
        "files that ask which arm it is: package": 1,
        "files that a new arm adds or edits": 2,
        "functions": 4,
        "the longest": "3 (value)",
        "more than 5 parameters by position": 1,
        "more than 8 parameters": 0,
        "most parameters": 7,
        "functions that take the whole Config": 1,
        "lines of README.md": 2,
    }
    assert {name: found[name] for name in expected} == expected
    [run] = [function for function in house.functions(tmp_path) if function.place.endswith("run")]
    assert run.lines == 2
