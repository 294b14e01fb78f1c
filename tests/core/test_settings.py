"""Settings describe themselves, and refuse what is out of range in a sentence."""

from dataclasses import FrozenInstanceError, dataclass

import pytest

from retrace.core.settings import Parameter, Settings, parameter


@dataclass(frozen=True)
class Damping(Settings):
    """One setting of each kind, and a field that is none."""

    gain: float = parameter(0.5, "How much.", minimum=0.0, maximum=1.0, step=0.1, advanced=True)
    rounds: int = parameter(2, "How often.", minimum=1, maximum=9)
    eager: bool = parameter(True, "Whether at once.")
    kind: str = parameter("soft", "Which.", options=("soft", "hard"), added=(0, 2, 0))
    other: object = None


def test_they_describe_themselves():
    assert Damping.parameters() == (
        Parameter("gain", float, 0.5, 0.0, 1.0, 0.1, "How much.", (), None, {"advanced": True}),
        Parameter("rounds", int, 2, 1, 9, None, "How often.", ()),
        Parameter("eager", bool, True, None, None, None, "Whether at once.", ()),
        Parameter("kind", str, "soft", None, None, None, "Which.", ("soft", "hard"), (0, 2, 0)),
    )
    assert Damping(gain=1).params == {"gain": 1.0, "rounds": 2, "eager": True, "kind": "soft"}
    assert type(Damping(gain=1).gain) is float
    with pytest.raises(FrozenInstanceError):
        Damping().gain = 0.1


@pytest.mark.parametrize(
    ("setting", "error", "sentence"),
    [
        ({"gain": 1.5}, ValueError, "gain must be at most 1.0, got 1.5; the default is 0.5."),
        ({"gain": -0.1}, ValueError, "gain must be at least 0.0, got -0.1"),
        ({"gain": float("nan")}, TypeError, "gain must be a finite float, got nan"),
        ({"gain": "1"}, TypeError, "gain must be a finite float, got '1'"),
        ({"rounds": 2.0}, TypeError, "rounds must be a finite int, got 2.0"),
        ({"rounds": True}, TypeError, "rounds must be a finite int, got True"),
        ({"kind": "mild"}, ValueError, "kind must be one of soft, hard, got 'mild'"),
    ],
)
def test_out_of_range(setting, error, sentence):
    with pytest.raises(error, match=sentence):
        Damping(**setting)
