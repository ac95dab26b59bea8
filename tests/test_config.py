"""Settings: from the right place, each with its origin; a bad one is refused with its line. The line to blame ends in `# <-`."""

from pathlib import Path

import pytest

from exitguard.config import ConfigError, LoadedSettings, OriginKind, Settings, load_settings
from exitguard.policy.problem import Problem

HOME = {"HOME": "/home/ada"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(
    path: Path | None = None, environ: dict[str, str] | None = None, *, user_id: int = 1000, system: Path | None = None
) -> LoadedSettings:
    return load_settings(
        path, HOME if environ is None else environ, user_id=user_id, system_config=system or Path("/nonexistent/config.yaml")
    )


def refusal(path: Path | None = None, environ: dict[str, str] | None = None, *, system: Path | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, system=system)
    return caught.value.problems


def test_without_anything_the_defaults_apply() -> None:
    loaded = load()
    assert loaded.settings == Settings(state_dir=Path("/home/ada/.local/state/exitguard"))
    assert loaded.settings.connect is None
    assert loaded.settings.call_timeout_seconds == 5
    assert loaded.file is None
    assert [origin.setting for origin in loaded.origins] == list(Settings.model_fields)
    assert {str(origin) for origin in loaded.origins} == {"default"}


def test_every_setting_can_be_given_in_the_file(config: Path) -> None:
    config.write_text(
        "# comment\nstate_dir: /srv/exitguard\nconnect: qemu+ssh://root@hv1/system\npolicy_files: [/etc/a.yaml]\n"
        "waiver_files:\n  - /etc/w.yaml\ncall_timeout_seconds: 2.5\nlog_level: debug\n"
    )
    loaded = load(config)
    assert loaded.settings == Settings(
        state_dir=Path("/srv/exitguard"),
        connect="qemu+ssh://root@hv1/system",
        policy_files=(Path("/etc/a.yaml"),),
        waiver_files=(Path("/etc/w.yaml"),),
        call_timeout_seconds=2.5,
        log_level="debug",
    )
    assert loaded.file == config
    assert {origin.kind for origin in loaded.origins} == {OriginKind.FILE}
    assert [origin.where for origin in loaded.origins] == [f"{config}:{line}" for line in (2, 3, 4, 5, 7, 8)]


@pytest.mark.parametrize(("written", "seconds"), [("0.5", 0.5), ("1", 1.0), ("60", 60.0), ("59.999", 59.999)])
def test_timeout_is_a_bounded_number_of_seconds(config: Path, written: str, seconds: float) -> None:
    config.write_text(f"call_timeout_seconds: {written}\n")
    assert load(config).settings.call_timeout_seconds == seconds


def test_environment_overrules_the_file(config: Path) -> None:
    config.write_text("state_dir: /srv/exitguard\nconnect: qemu:///system\nlog_level: error\n")
    loaded = load(config, {"EXITGUARD_STATE_DIR": "/run/state", "EXITGUARD_CONNECT": "test:///default", "EXITGUARD_LOG_LEVEL": "debug"})
    assert (loaded.settings.state_dir, loaded.settings.connect) == (Path("/run/state"), "test:///default")
    assert loaded.settings.log_level == "error"
    assert str(loaded.origin("state_dir")) == "environment EXITGUARD_STATE_DIR"
    assert str(loaded.origin("connect")) == "environment EXITGUARD_CONNECT"
    assert str(loaded.origin("log_level")) == f"{config}:3"
    assert str(loaded.origin("call_timeout_seconds")) == "default"


def test_empty_variable_counts_as_none(config: Path) -> None:
    config.write_text("connect: qemu:///session\n")
    loaded = load(None, {**HOME, "EXITGUARD_STATE_DIR": "", "EXITGUARD_CONNECT": "", "EXITGUARD_CONFIG": ""}, system=config)
    assert loaded.settings.connect == "qemu:///session"
    assert loaded.origin("state_dir").kind is OriginKind.DEFAULT


def test_null_in_the_file_is_a_choice_of_the_file(config: Path) -> None:
    config.write_text("connect: null\n")
    assert str(load(config).origin("connect")) == f"{config}:1"


def test_relative_state_directory_of_the_environment_starts_where_the_shell_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {"EXITGUARD_STATE_DIR": ".local/state"}).settings.state_dir == tmp_path / ".local/state"


def test_explicit_file_comes_before_the_variable_and_that_before_the_systems(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.yaml" for name in ("explicit", "variable", "system")}
    for name, file in files.items():
        file.write_text(f"connect: {name}:///x\n")
    environ = {**HOME, "EXITGUARD_CONFIG": str(files["variable"])}
    assert load(files["explicit"], environ, system=files["system"]).file == files["explicit"]
    assert load(None, environ, system=files["system"]).settings.connect == "variable:///x"
    assert load(None, HOME, system=files["system"]).settings.connect == "system:///x"


def test_file_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    for problems in (refusal(missing), refusal(None, {**HOME, "EXITGUARD_CONFIG": str(missing)})):
        assert [problem.sentence for problem in problems] == [f"{missing}: expected a file, found none"]


def test_systems_file_that_is_there_and_unusable_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("gone.yaml")
    assert [problem.message for problem in refusal(None, HOME, system=tmp_path / "config.yaml")] == ["expected a file, found none"]


def test_systems_file_in_a_closed_directory_is_not_passed_over(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_path: Path) -> None:  # as the kernel does for a user who is not root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", closed)
    assert [problem.file for problem in refusal(None, HOME, system=config)] == [str(config)]


def test_directory_of_the_systems_file_may_be_missing_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert load(None, HOME, system=tmp_path / "file/config.yaml").file is None


def test_empty_file_changes_nothing(config: Path) -> None:
    config.write_text("# nothing yet\n")
    loaded = load(config)
    assert loaded.settings == load().settings
    assert loaded.file == config


@pytest.mark.parametrize(
    ("environ", "user_id", "state_dir"),
    [
        (HOME, 0, "/var/lib/exitguard"),
        ({}, 0, "/var/lib/exitguard"),
        (HOME, 1000, "/home/ada/.local/state/exitguard"),
        ({**HOME, "XDG_STATE_HOME": "/srv/state"}, 1000, "/srv/state/exitguard"),
        ({**HOME, "XDG_STATE_HOME": "/srv/state"}, 0, "/var/lib/exitguard"),
        ({**HOME, "XDG_STATE_HOME": "relative"}, 1000, "/home/ada/.local/state/exitguard"),
        ({**HOME, "XDG_STATE_HOME": ""}, 1000, "/home/ada/.local/state/exitguard"),
    ],
)
def test_default_state_directory(environ: dict[str, str], user_id: int, state_dir: str) -> None:
    assert load(None, environ, user_id=user_id).settings.state_dir == Path(state_dir)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}])
def test_without_a_home_the_state_directory_has_to_be_named(config: Path, environ: dict[str, str]) -> None:
    (problem,) = refusal(None, environ)
    assert (problem.file, problem.line, problem.path) == ("environment", None, "HOME")
    assert "EXITGUARD_STATE_DIR" in problem.message
    assert load(None, {**environ, "EXITGUARD_STATE_DIR": "/srv"}).settings.state_dir == Path("/srv")
    config.write_text("state_dir: /srv\n")
    assert load(config, environ).settings.state_dir == Path("/srv")


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("- a # <-", "", "expected a mapping of settings, found a list of 1"),
        ("log_level: info\nloglevel: debug # <-", "loglevel", "this key is unknown: did you mean 'log_level'?"),
        ("log_level: info\nhub: x # <-", "hub", "expected one of state_dir, connect, policy_files"),
        ("state_dir: state # <-", "state_dir", "expected an absolute path, found 'state'"),
        ("state_dir: ~/state # <-", "state_dir", "expected an absolute path, found '~/state'"),
        ("state_dir: # <-", "state_dir", "expected text, found nothing"),
        ('state_dir: "/srv\\0" # <-', "state_dir", "expected an absolute path"),
        ("connect: localhost # <-", "connect", "expected a libvirt URI such as qemu:///system, found 'localhost'"),
        ('connect: "qemu:///system\\n" # <-', "connect", "expected a libvirt URI"),
        (f"connect: qemu:///{'x' * 500} # <-", "connect", "expected at most 500 characters"),
        ("connect: off # <-", "connect", "expected a libvirt URI such as qemu:///system, found 'off'"),
        ("policy_files: /etc/a.yaml # <-", "policy_files", "expected a list, found '/etc/a.yaml'"),
        ("policy_files:\n  - /etc/a.yaml\n  - b.yaml # <-", "policy_files[1]", "expected an absolute path, found 'b.yaml'"),
        ("waiver_files: [5] # <-", "waiver_files[0]", "expected text, found the number 5"),
        ("call_timeout_seconds: 0.4 # <-", "call_timeout_seconds", "expected at least 0.5, found '0.4'"),
        ("call_timeout_seconds: 61 # <-", "call_timeout_seconds", "expected at most 60, found the number 61"),
        ("call_timeout_seconds: 5s # <-", "call_timeout_seconds", "expected a number, found '5s'"),
        ("call_timeout_seconds: true # <-", "call_timeout_seconds", "expected a number, found true"),
        ("call_timeout_seconds: .inf # <-", "call_timeout_seconds", "expected a number, found '.inf'"),
        ("log_level: verbose # <-", "log_level", "expected 'debug', 'info', 'warning' or 'error', found 'verbose'"),
        ("log_level: info\nlog_level: debug # <-", "log_level", "it first stands in line 1"),
        ("connect: ] # <-", "", "not YAML"),
    ],
)
def test_bad_file_is_refused_with_its_line(config: Path, text: str, path: str, message: str) -> None:
    config.write_text(text)
    (problem,) = refusal(config)
    (line,) = (number for number, content in enumerate(text.splitlines(), 1) if content.endswith("# <-"))
    assert (problem.file, problem.line, problem.path) == (str(config), line, path)
    assert message in problem.message


def test_bad_value_of_the_environment_names_its_variable() -> None:
    (problem,) = refusal(None, {**HOME, "EXITGUARD_CONNECT": "localhost"})
    assert problem.sentence == "environment: EXITGUARD_CONNECT: expected a libvirt URI such as qemu:///system, found 'localhost'"


def test_variable_that_is_no_text_is_refused() -> None:
    (problem,) = refusal(None, {**HOME, "EXITGUARD_STATE_DIR": "/srv/\udcff"})
    assert (problem.path, problem.message) == ("EXITGUARD_STATE_DIR", "expected text in UTF-8, found other bytes")


def test_bad_values_of_file_and_environment_are_told_together_even_where_one_overrules_the_other(config: Path) -> None:
    config.write_text("connect: localhost\n")
    assert [problem.where for problem in refusal(config, {**HOME, "EXITGUARD_CONNECT": "here"})] == [f"{config}:1", "environment"]


def test_unknown_setting_has_no_origin() -> None:
    with pytest.raises(KeyError):
        load().origin("hub")
