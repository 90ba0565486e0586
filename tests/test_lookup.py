"""From names, paths and mappings to objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest

from hf_distill.errors import ConfigurationError, HfDistillError
from hf_distill.lookup import build, suggest


@dataclass(frozen=True)
class Pool:
    weights: tuple[float, ...] | None = None
    power: float = 1.0

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError(f"power is {self.power}, it must be > 0")

    def __call__(self):
        return self.power


def divergence(a, b, *, temperature=1.0, beta=0.5):
    return (a, b, temperature, beta)


FINISHED = Pool(power=7.0)
TABLE = {"pool": Pool, "divergence": divergence, "finished": FINISHED}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("pool", Pool()),
        ({"use": "pool"}, Pool()),
        ({"use": "pool", "power": 3}, Pool(power=3)),
        (f"{__name__}:Pool", Pool()),
        ({"use": f"{__name__}:Pool", "weights": (1, 2)}, Pool(weights=(1, 2))),
        ("divergence", divergence),
        ({"use": "divergence"}, divergence),
        (f"{__name__}:Pool.__call__", Pool.__call__),
        ("finished", FINISHED),
        (FINISHED, FINISHED),
        (divergence, divergence),
    ],
)
def test_four_spellings_give_the_same_object(spec, expected):
    assert build(spec, TABLE, kind="fusion") == expected


def test_an_object_is_returned_as_it_is():
    thing = Pool()
    assert build(thing, {}, kind="fusion") is thing


def test_a_function_with_options_is_a_partial():
    built = build({"use": "divergence", "beta": 0.25}, TABLE, kind="loss")
    assert isinstance(built, functools.partial)
    assert built(1, 2, temperature=3) == (1, 2, 3, 0.25)


def test_the_spec_is_not_changed():
    spec = {"use": "pool", "power": 2}
    build(spec, TABLE, kind="fusion")
    assert spec == {"use": "pool", "power": 2}


@pytest.mark.parametrize(
    ("spec", "sentences"),
    [
        ("pol", ["no fusion named 'pol'", "known: divergence, finished, pool", "did you mean 'pool'?"]),
        ("Pool", ["did you mean 'pool'?"]),
        ("xyz", ["no fusion named 'xyz'", "a path to your own is written pkg.mod:Name"]),
        ("my.mod.Pool", ["a path to your own is written 'my.mod:Pool'"]),
        ("no_such_module:Pool", ["'no_such_module' cannot be imported", "folder the command is run from"]),
        (f"{__name__}:Pol", ["has no 'Pol'", "did you mean 'Pool'?"]),
        (":Pool", ["written pkg.mod:Name; found ':Pool'"]),
        ("os:", ["written pkg.mod:Name; found 'os:'"]),
        ("os:path; x", ["written pkg.mod:Name"]),
        ({"use": "pool", "powr": 2}, ["has no option 'powr'", "did you mean 'power'?", "weights, power"]),
        ({"use": "divergence", "bta": 2}, ["has no option 'bta'", "did you mean 'beta'?"]),
        ({"use": "pool", "power": -1}, ["'pool' with {'power': -1}: power is -1, it must be > 0"]),
        ({"use": "pool", 3: 4}, ["options are words, found 3"]),
        ({"use": "finished", "power": 4}, ["is a finished Pool and takes no options; found power"]),
        ({"power": 4}, ["under the key 'use'", "{'power': 4}"]),
        ({"use": 4}, ["under the key 'use'"]),
        (Pool, ["found the class Pool, expected an instance; write Pool()"]),
        (None, ["found None"]),
        (3, ["found 3"]),
        (["pool"], ["found ['pool']"]),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_write(spec, sentences):
    with pytest.raises(ConfigurationError) as raised:
        build(spec, TABLE, kind="fusion")
    assert "fusion" in str(raised.value)
    for sentence in sentences:
        assert sentence in str(raised.value)


def test_our_own_errors_pass_unchanged():
    class Strict:
        def __init__(self, **options):
            raise ConfigurationError(f"exactly this: {options}")

    with pytest.raises(ConfigurationError, match=r"^exactly this: \{'anything': 1\}$"):
        build({"use": "strict", "anything": 1}, {"strict": Strict}, kind="fusion")


def test_an_error_inside_the_users_module_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken_fusion_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build("broken_fusion_module:Pool", {}, kind="fusion")


def test_suggestions_ignore_case_and_stay_silent_when_nothing_is_near():
    assert suggest("TEMPRATURE", ["temperature", "beta"]) == " (did you mean 'temperature'?)"
    assert suggest("xyz", ["temperature"]) == ""
    assert suggest("x", []) == ""


def test_every_error_has_its_own_exit_code():
    import hf_distill.errors as errors

    codes = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, HfDistillError)
    }
    assert errors.StoppedError("", number=15, checkpoint="").exit_code == 143
    assert codes.pop("StoppedError") == 1
    assert codes == {
        "HfDistillError": 1,
        "ConfigurationError": 2,
        "DataError": 3,
        "LabelNameError": 3,
        "UnsafeFileError": 4,
        "CorruptStateError": 5,
        "StorageError": 5,
        "PushError": 6,
    }
    assert issubclass(HfDistillError, ValueError)
