"""What the lab takes from the machine: its certificate bundle and its wheels."""

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[1] / "inventory" / "lab" / "machine.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_machine", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


machine = load_script()


def test_an_ordinary_machine_adds_nothing() -> None:
    assert machine.extra_ca({}, {}) == ""
    assert machine.wheelhouse({}, {}) == ""


def test_what_is_said_wins_even_when_it_says_none(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert machine.extra_ca({"PIP_CERT": str(bundle), "MUSTER_EXTRA_CA": ""}, {}) == ""
    assert machine.extra_ca({"PIP_CERT": str(bundle), "MUSTER_EXTRA_CA": "/my.pem"}, {}) == "/my.pem"
    assert machine.wheelhouse({"PIP_FIND_LINKS": str(tmp_path), "NODE_IMAGE_WHEELHOUSE": "/my"}, {}) == "/my"


def test_pip_s_settings_count_where_the_files_are_there(tmp_path: Path) -> None:
    bundle, config = tmp_path / "ca.pem", tmp_path / "pip.conf"
    bundle.touch()
    config.write_text(f"[global]\ncert = {bundle}\nfind-links = https://example.org/x {tmp_path}\n")
    pip = machine.pip_settings((str(config), str(tmp_path / "absent.conf")))
    assert machine.extra_ca({"SSL_CERT_FILE": "/gone.pem"}, pip) == str(bundle)
    assert machine.wheelhouse({}, pip) == str(tmp_path)


def test_a_broken_pip_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("find-links = x\n")
    assert machine.pip_settings((str(config),)) == {}
