"""Settings: from the right place, each with its origin; a bad one is refused with its line. The line to blame ends in `# <-`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exitguard.config import ConfigError, LoadedSettings, OriginKind, changes_needing_restart, load_settings
from exitguard.policy.problem import Problem
from exitguard.settings import Guide, Settings, refuse_password, without_password

HOME = {"HOME": "/home/ada"}
ANOTHER_OF_EACH = """\
# comment
state_dir: /srv/exitguard
remedy_dir: /srv/remedy
connect: qemu+ssh://root@hv1/system
policy_files: [/etc/a.yaml]
waiver_files:
  - /etc/w.yaml
measurement_files: [/etc/m.json]
call_timeout_seconds: 2.5
log_level: debug
audit_interval_seconds: 300
sample_interval_seconds: 20
exit_trace_milliseconds: 500
retention_days: 90
sample_retention_days: 9
ledger_hours_retention_days: 40
database_limit_mib: 64
metrics_listen: 127.0.0.1:9478
metrics_textfile: /srv/textfile/exitguard.prom
hub_url: https://hub.example.org:8443
hub_token_file: /etc/exitguard/hub-token
hub_key_file: /etc/exitguard/hub-key
hub_enrolment_file: /etc/exitguard/enrolment
hub_ca_file: /etc/ssl/site.pem
push_interval_seconds: 30
spool_limit_mib: 128
"""
SAMPLE = Path(__file__).parent.parent / "deploy/config.yaml"


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
    config.write_text(ANOTHER_OF_EACH)
    loaded = load(config)
    assert loaded.settings == Settings(
        state_dir=Path("/srv/exitguard"),
        remedy_dir=Path("/srv/remedy"),
        connect="qemu+ssh://root@hv1/system",
        policy_files=(Path("/etc/a.yaml"),),
        waiver_files=(Path("/etc/w.yaml"),),
        measurement_files=(Path("/etc/m.json"),),
        call_timeout_seconds=2.5,
        log_level="debug",
        audit_interval_seconds=300,
        sample_interval_seconds=20,
        exit_trace_milliseconds=500,
        retention_days=90,
        sample_retention_days=9,
        ledger_hours_retention_days=40,
        database_limit_mib=64,
        metrics_listen="127.0.0.1:9478",
        metrics_textfile=Path("/srv/textfile/exitguard.prom"),
        hub_url="https://hub.example.org:8443",
        hub_key_file=Path("/etc/exitguard/hub-key"),
        hub_token_file=Path("/etc/exitguard/hub-token"),
        hub_enrolment_file=Path("/etc/exitguard/enrolment"),
        hub_ca_file=Path("/etc/ssl/site.pem"),
        push_interval_seconds=30,
        spool_limit_mib=128,
    )
    assert loaded.file == config
    assert {origin.kind for origin in loaded.origins} == {OriginKind.FILE}
    assert [origin.where for origin in loaded.origins] == [f"{config}:{line}" for line in (2, 3, 4, 5, 6, *range(8, 27))]


@pytest.mark.parametrize(("written", "seconds"), [("0.5", 0.5), ("1", 1.0), ("60", 60.0), ("59.999", 59.999)])
def test_timeout_is_a_bounded_number_of_seconds(config: Path, written: str, seconds: float) -> None:
    config.write_text(f"call_timeout_seconds: {written}\n")
    assert load(config).settings.call_timeout_seconds == seconds


@pytest.mark.parametrize(
    ("setting", "least", "most", "default"),
    [
        ("audit_interval_seconds", 15, 43_200, 600),
        ("sample_interval_seconds", 10, 3600, 300),
        ("exit_trace_milliseconds", 0, 2000, 0),
        ("retention_days", 1, 3650, 400),
        ("sample_retention_days", 1, 3650, 7),
        ("ledger_hours_retention_days", 2, 3650, 35),
        ("database_limit_mib", 16, 65_536, 512),
    ],
)
def test_whole_number_has_a_default_and_bounds(config: Path, setting: str, least: int, most: int, default: int) -> None:
    assert getattr(load().settings, setting) == default
    beside = "" if setting == "audit_interval_seconds" else "audit_interval_seconds: 43200\n"
    for value in (least, most):
        config.write_text(f"{beside}{setting}: {value}\n")
        assert getattr(load(config).settings, setting) == value
    for value, expected in ((least - 1, f"at least {least}"), (most + 1, f"at most {most}"), ("1.5", "an integer")):
        config.write_text(f"{beside}{setting}: {value}\n")
        (problem,) = refusal(config)
        assert (problem.path, problem.line) == (setting, len(beside.splitlines()) + 1)
        assert problem.message.startswith(f"expected {expected}, found ")


@pytest.mark.parametrize("url", ["https://hub.example.org", "https://10.0.0.1:8443/", "http://127.0.0.1:8470", "http://[::1]:8470"])
def test_a_hub_is_named_by_its_address_alone(config: Path, url: str) -> None:
    config.write_text(f'hub_url: "{url}"')
    assert load(config).settings.hub_url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "hub.example.org",
        "http://hub.example.org",
        "http://10.0.0.1",
        "https://user:secret@hub",
        "https://hub/path",
        "https://hub:99999",
        "https://",
    ],
)
def test_a_hub_without_encryption_or_with_more_than_an_address_is_refused(config: Path, url: str) -> None:
    config.write_text(f'hub_url: "{url}"')
    (problem,) = refusal(config)
    assert (problem.path, "expected https://HOST" in problem.message) == ("hub_url", True)


@pytest.mark.parametrize("listen", ["127.0.0.1:9478", "127.255.0.9:1", "127.0.0.1:65535", "[::1]:9478"])
def test_metrics_are_served_on_a_loopback_address(config: Path, listen: str) -> None:
    config.write_text(f'metrics_listen: "{listen}"\n')
    assert load(config).settings.metrics_listen == listen


@pytest.mark.parametrize(
    "listen",
    [
        *("0.0.0.0:9478", "192.0.2.1:9478", "[::]:9478", "[2001:db8::1]:9478", "[::ffff:127.0.0.1]:9478", "[::1%lo]:9478"),
        *("localhost:9478", ":9478", "9478", "127.0.0.1", "127.0.0.1:", "::1:9478", "127.1:9478", "127.0.0.256:9478", "127.0.0.01:9478"),
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:099", "127.0.0.1:-1", "127.0.0.1:\u0661", "127.0.0.1:http", "http://127.0.0.1:9478"),
        *(" 127.0.0.1:9478", "127.0.0.1:9478 ", "[127.0.0.1]:9478", ""),
    ],
)
def test_metrics_are_served_on_nothing_but_a_loopback_address(config: Path, listen: str) -> None:
    config.write_text(f'# comment\nmetrics_listen: "{listen}"\n', encoding="utf-8")
    (problem,) = refusal(config)
    assert (problem.line, problem.path) == (2, "metrics_listen")
    assert problem.message.startswith('expected a loopback address and a port, such as 127.0.0.1:9478 or "[::1]:9478", found ')


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("exitguard.prom", "expected an absolute path, found 'exitguard.prom'"),
        ("/srv/exitguard.txt", "expected a file name that ends in .prom, found '/srv/exitguard.txt'"),
        ("/srv/exitguard.prom.tmp", "expected a file name that ends in .prom, found '/srv/exitguard.prom.tmp'"),
        ("/srv/.prom", "expected a file name that ends in .prom, found '/srv/.prom'"),
    ],
)
def test_metrics_file_that_no_collector_would_read_is_refused(config: Path, file: str, message: str) -> None:
    config.write_text(f"metrics_textfile: {file}\n")
    (problem,) = refusal(config)
    assert (problem.line, problem.path, problem.message) == (1, "metrics_textfile", message)


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+tcp://ada:s3cret@hv1/system",
        "qemu+tcp://ada:s3cret@hv1:16509/system",
        "qemu+tcp://:s3cret@hv1/system",
        "qemu+tcp://ada@site:s3cret@hv1/system",
        "qemu+tcp://ada:s3@cret@hv1/system",
        "qemu+tcp://ada:s3/cret@hv1/system",
        "qemu+tcp://ada:s3:cret?#@hv1/system",
        "qemu+tcp://ada%3As3cret@hv1/system",
        "qemu+tcp://ada%3as3cret@hv1/system",
        f"qemu+tcp://ada:s3cret{'x' * 500}@hv1/system",
        f"qemu+tcp://{'a' * 500}:s3cret@hv1/system",
        "qemu+tcp://ada:s3\\ncret@hv1/system",
        "ada:s3cret@hv1",
        "QEMU://ada:s3cret@hv1/system",
    ],
)
def test_password_in_a_uri_is_refused_and_never_shown(config: Path, uri: str) -> None:
    config.write_text(f'connect: "{uri}"\n')
    (in_file,) = refusal(config)
    assert (in_file.line, in_file.path) == (1, "connect")
    (in_environment,) = refusal(None, {**HOME, "EXITGUARD_CONNECT": uri})
    assert in_environment.path == "EXITGUARD_CONNECT"
    for problem in (in_file, in_environment):
        assert problem.message.startswith("expected a libvirt URI without a password, found ")
        assert not re.search("s3|cret", problem.sentence)
    with pytest.raises(ValueError, match="without a password") as caught:
        refuse_password(uri)
    assert not re.search("s3|cret", str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "connect:qemu+tcp://ada:s3cret@hv1/system",
        "connect: {qemu+tcp://ada:s3cret@hv1/system: }",
        "connect: [qemu+tcp://ada:s3cret@hv1/system]",
        "conect: qemu+tcp://ada:s3cret@hv1/system",
        "connect: !uri qemu+tcp://ada:s3cret@hv1/system",
        "connect: 'qemu+tcp://ada:s3cret@hv1/system",
        "connect: 'qemu+tcp://ada:s3cret@hv1/system' x",
        "connect: qemu:///system\nconnect: qemu+tcp://ada:s3cret@hv1/system",
    ],
)
def test_password_is_not_shown_where_the_file_is_not_even_understood(config: Path, text: str) -> None:
    config.write_text(text)
    assert not any("cret" in problem.sentence for problem in refusal(config))


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu+ssh://root@hv1:2222/system",
        "qemu+ssh://root@[2001:db8::1]:22/system?keyfile=/root/key",
        "qemu+ssh://root@hv1/system?keyfile=/home/ops@site/key",
        "qemu+ssh://root@hv1:22/system?keyfile=/home/ops%40site/key",
        "test:///default",
    ],
)
def test_uri_without_a_password_is_taken_as_it_is(uri: str) -> None:
    assert load(None, {**HOME, "EXITGUARD_CONNECT": uri}).settings.connect == uri
    assert without_password(uri) == uri


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


def test_owner_of_the_systems_state_directory_uses_it(tmp_path: Path) -> None:
    """The daemon's user finds the daemon's history from a shell too."""
    if os.geteuid() == 0:  # root has it anyway
        os.chown(tmp_path, 990, -1)
    owner = tmp_path.stat().st_uid
    for user_id, state_dir in ((owner, tmp_path), (owner + 1, Path("/home/ada/.local/state/exitguard"))):
        loaded = load_settings(None, HOME, user_id=user_id, system_config=tmp_path / "none", system_state_dir=tmp_path)
        assert loaded.settings.state_dir == state_dir


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
        ("log_level: info\nzzz: x # <-", "zzz", "expected one of state_dir, remedy_dir, connect, policy_files"),
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


def test_sample_as_shipped_changes_nothing() -> None:
    loaded = load(SAMPLE, HOME, user_id=0)
    assert loaded.settings == load(None, HOME, user_id=0).settings
    assert {origin.kind for origin in loaded.origins} == {OriginKind.DEFAULT}


def test_sample_with_every_setting_uncommented_says_the_defaults(config: Path) -> None:
    config.write_text(re.sub(r"^#(?=[a-z_]+:)", "", SAMPLE.read_text(), flags=re.MULTILINE))
    loaded = load(config, HOME, user_id=0)
    assert loaded.settings == load(None, HOME, user_id=0).settings
    assert {origin.kind for origin in loaded.origins} == {OriginKind.FILE}


@pytest.mark.parametrize("setting", list(Settings.model_fields))
def test_every_setting_says_what_it_is_its_unit_and_why_to_change_it(setting: str) -> None:
    field = Settings.model_fields[setting]
    (guide,) = (part for part in field.metadata if isinstance(part, Guide))
    assert field.description
    assert guide.unit
    assert guide.why.endswith(".")
    endings = {"seconds": "_seconds", "days": "_days", "MiB": "_mib"}
    assert setting.endswith(endings.get(guide.unit, ""))


def test_state_directory_alone_needs_a_restart(config: Path) -> None:
    old = load().settings
    config.write_text(ANOTHER_OF_EACH)
    new = load(config).settings
    assert [name for name in Settings.model_fields if getattr(old, name) == getattr(new, name)] == []
    assert changes_needing_restart(old, new) == ("state_dir",)
    assert changes_needing_restart(old, new.model_copy(update={"state_dir": old.state_dir})) == ()
    assert changes_needing_restart(old, old) == ()


def test_daemon_gets_its_settings_without_what_only_the_command_line_needs() -> None:
    heavy = "{'typer', 'click', 'rich', 'alembic', 'sqlalchemy', 'libvirt'}"
    code = f"import sys, exitguard.config; exitguard.config.load_settings(None, dict(HOME='/')); print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_dev_null_is_no_file_whatever_stands_in_the_usual_place(tmp_path: Path) -> None:
    bad = tmp_path / "config.yaml"
    bad.write_text("nope: 1\n")
    with pytest.raises(ConfigError):
        load_settings(None, {"HOME": str(tmp_path)}, system_config=bad)
    loaded = load_settings(Path("/dev/null"), {"HOME": str(tmp_path)}, system_config=bad)
    assert loaded.settings.audit_interval_seconds == 600
