"""The parameters of nova_default_off: which option of nova.conf a vendor's default goes by."""

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from exitguard.policy.json_schema import policy_schemas
from exitguard.policy.load import PolicyError, load_rulebook
from exitguard.policy.parameters import NovaDefaultParameters
from exitguard.policy.schema import Check, Policy

RULE = """\
kind: policy
schema_version: 1
id: site
version: '1'
title: a policy
rules:
  - id: SITE-NOVA
    severity: low
    title: a title
    rationale: a reason
    subject: host
    check: {check}
    parameters: {parameters}
"""
WHOLE = "{option: libvirt.default_pmu, value: 'false'}"


def write(tmp_path: Path, parameters: str, check: str = "nova_default_off") -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(RULE.format(parameters=parameters, check=check))
    return path


def test_option_and_value_suffice_and_the_usual_files_are_looked_at(tmp_path: Path) -> None:
    (rule,) = load_rulebook((write(tmp_path, WHOLE),)).policy.rules
    assert rule.check is Check.NOVA_DEFAULT_OFF
    assert rule.parameters == NovaDefaultParameters(
        option="libvirt.default_pmu",
        value="false",
        files=("/etc/nova/nova.conf", "/etc/nova/nova-compute.conf", "/etc/kolla/nova-compute/nova.conf"),
    )


@pytest.mark.parametrize(
    ("parameters", "path", "message"),
    [
        ("{option: libvirt.default_pmu}", "value", "expected this key, found none"),
        ("{value: 'false'}", "option", "expected this key, found none"),
        ("{option: default_pmu, value: 'false'}", "option", "expected a section and an option of nova.conf, such as libvirt.default_pmu"),
        ("{option: libvirt., value: 'false'}", "option", "expected a section and an option of nova.conf"),
        ("{option: 'a b.c', value: 'false'}", "option", "expected a section and an option of nova.conf"),
        ("{option: libvirt.default_pmu, value: 5}", "value", "expected text, found the number 5: write it in quotes"),
        ("{option: libvirt.default_pmu, value: 'false', files: []}", "files", "expected a list of at least 1"),
        ("{option: libvirt.default_pmu, value: 'false', files: [nova.conf]}", "files[0]", "expected a path that begins with /"),
        ("{option: libvirt.default_pmu, value: 'false', files: [/etc/../x]}", "files[0]", "has no .. in it"),
        ("{option: libvirt.default_pmu, value: 'false', file: [/x]}", "file", "this key is unknown"),
        ("{required: [libvirt]}", "", "expected parameters of check nova_default_off, which are option, value, files"),
    ],
)
def test_bad_parameters_are_refused_with_their_place(parameters: str, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        load_rulebook((write(tmp_path, parameters),))
    (problem,) = caught.value.problems
    assert problem.path == ".".join(part for part in ("rules[0].parameters", path) if part)
    assert message in problem.message
    assert problem.line == RULE[: RULE.index("parameters:")].count("\n") + 1


def test_another_checks_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected parameters of check sources, which are required"):
        load_rulebook((write(tmp_path, WHOLE, "sources"),))


def test_misspelt_parameter_of_sources_is_still_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="requird: this key is unknown"):
        load_rulebook((write(tmp_path, "{requird: [libvirt]}", "sources"),))


@pytest.mark.parametrize(
    ("parameters", "valid"),
    [
        ({"option": "libvirt.default_pmu", "value": "false"}, True),
        ({"option": "libvirt.default_pmu", "value": "false", "files": ["/etc/nova/nova.conf"]}, True),
        ({"required": ["libvirt"]}, True),
        ({"option": "libvirt.default_pmu"}, False),
        ({"option": "libvirt.default_pmu", "value": "false", "required": ["libvirt"]}, False),
        ({"requird": ["libvirt"]}, False),
    ],
)
def test_json_schema_takes_the_parameters_of_either_check_and_no_mixture(parameters: dict[str, object], *, valid: bool) -> None:
    rule = {"id": "A-B", "severity": "low", "title": "t", "rationale": "r", "subject": "host", "check": "sources", "parameters": parameters}
    document = {"kind": "policy", "schema_version": 1, "id": "a", "version": "1", "title": "t", "rules": [rule]}
    assert Draft202012Validator(policy_schemas()["policy"]).is_valid(document) is valid


def test_parameters_are_kept_when_a_policy_is_written_as_json_and_read_again(tmp_path: Path) -> None:
    policy = load_rulebook((write(tmp_path, WHOLE),)).policy
    assert Policy.model_validate_json(policy.model_dump_json()) == policy
