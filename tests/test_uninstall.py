"""What uninstall.yml is told."""

import pytest

from muster.errors import MusterError
from muster.known import known
from muster.uninstall import uninstall


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        ({}, "nobody confirmed that", "type mine when you are asked, or add -e confirm=mine"),
        ({"confirm": "nothing"}, "nobody confirmed that", "type mine when you are asked, or add -e confirm=mine"),
        ({"confirm": "lab"}, "this cluster is mine, not lab", "give the inventory that you mean, by -i"),
        ({"confirm": "mine", "keep_data": "maybe"}, "keep_data is 'maybe'", "write keep_data=true or keep_data=false"),
        (
            {"confirm": "mine", "keepdata": "false"},
            "the argument keepdata is unknown",
            "write keep_data; there are confirm, keep_data",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(given: dict[str, str], problem: str, fix: str) -> None:
    with pytest.raises(MusterError) as caught:
        uninstall(given, given, known().names, "mine")
    assert (caught.value.problem, caught.value.fix) == (problem, fix)


def test_data_stays_unless_somebody_says_otherwise() -> None:
    for more, keep in ({}, True), ({"keep_data": "false"}, False), ({"keep_data": "True"}, True):
        given = {"confirm": "mine", **more}
        assert uninstall(given, given, known().names, "mine")["keep_data"] is keep
