"""How screens look in a pipe and in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from muster.tables import Screen, paint, plain

SCREEN: Screen = [
    "all is well",
    [("host", "state"), ("head", "ready"), ("a-long-name", "down")],
    [("queue", "waiting"), ("data", "12")],
    "missing: head/worker-1: run site.yml",
]


def painted(screen: Screen, width: int = 80) -> str:
    text = io.StringIO()
    paint(screen, Console(file=text, force_terminal=True, color_system="standard", width=width))
    return text.getvalue()


def test_in_a_pipe_it_is_aligned_text_with_a_blank_line_around_tables() -> None:
    assert plain(SCREEN).splitlines() == [
        "all is well",
        "",
        "host         state",
        "head         ready",
        "a-long-name  down",
        "",
        "queue  waiting",
        "data   12",
        "",
        "missing: head/worker-1: run site.yml",
    ]
    assert plain([[("a",)], "", [("b",)]]) == "a\n\nb"
    assert plain([]) == ""


def test_in_a_terminal_states_have_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = painted(SCREEN)
    assert "\x1b[32mready\x1b[0m" in text and "\x1b[1;31mdown" in text
    assert "\x1b[1;31mmissing\x1b[0m: head/worker-1: run site.yml" in text


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in painted(SCREEN) and "31m" not in painted(SCREEN)


def test_what_is_too_wide_wraps_in_its_column_and_nothing_is_lost() -> None:
    lines = painted([[("task", "id"), ("app.report_of_the_whole_year", "0123456789")]], width=24).splitlines()
    assert len(lines) > 2 and max(map(len, lines[1:])) <= 24
    assert "".join(line[:10].strip() for line in lines[1:]).startswith("app.report")
    command = "lost: ansible-playbook remove-laptop.yml -e host=anna -e lost=true"
    assert command.partition(":")[2] in painted([command], width=24), "a command can be copied"


@pytest.mark.parametrize("name", ["[red]app.task[/red]", "[/]"])
def test_names_of_others_are_no_markup(name: str) -> None:
    assert name in painted([[("task",), (name,)], name])


def test_names_of_others_do_not_steer_the_terminal() -> None:
    wicked = "app.\x1b[2Jtask\nfaked line\r\x9b"
    for text in (plain([[("task",), (wicked,)], wicked]), painted([[("task",), (wicked,)], wicked])):
        assert "\x1b[2J" not in text and "\x9b" not in text and "\nfaked" not in text and "\r" not in text
