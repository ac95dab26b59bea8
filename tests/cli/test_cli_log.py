"""Logs: on standard error, and as harmless as the pages."""

import json

import pytest
import structlog

from exitguard.cli.log import LogFormat, Logging, configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> object:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", [LogFormat.CONSOLE, LogFormat.JSON])
def test_no_value_acts_on_the_terminal(capsys: pytest.CaptureFixture[str], log_format: LogFormat) -> None:
    configure_logging(Logging(log_format=log_format), {})
    structlog.get_logger().warning("domain.\x1b[31mseen", name="\x1b[31m\u202e", list=["\x1b"], long="x" * 100_000)
    told = capsys.readouterr()
    assert told.out == ""
    assert all(character == "\n" or character.isprintable() for character in told.err)
    assert len(told.err) < 3000


def test_not_a_terminal_gets_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Logging(), {})
    structlog.get_logger().warning("domain.stuck", seconds=5)
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["level"], event["seconds"]) == ("domain.stuck", "warning", 5)
    assert event["timestamp"].endswith("Z")


def test_information_needs_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Logging(), {})
    structlog.get_logger().info("quiet")
    assert capsys.readouterr().err == ""
    configure_logging(Logging(verbose=True), {})
    structlog.get_logger().info("loud")
    assert "loud" in capsys.readouterr().err


def test_libvirts_own_log_is_left_to_whoever_asked_for_it() -> None:
    quiet: dict[str, str] = {}
    configure_logging(Logging(), quiet)
    assert quiet == {"LIBVIRT_DEBUG": "error"}
    for environ, wanted in (({"LIBVIRT_LOG_OUTPUTS": "1:file:/tmp/x"}, Logging()), ({}, Logging(verbose=True))):
        before = dict(environ)
        configure_logging(wanted, environ)
        assert environ == before
