"""A vendor's option of nova.conf: told beside the witnesses, never in their place."""

import pytest
from audit_builders import definition, domain, facts, nova, process

from exitguard.audit.judge import judge
from exitguard.model.documents import FactsDocument
from exitguard.model.domain import DomainFacts
from exitguard.model.finding import Finding, Verdict
from exitguard.model.host import NovaOption
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, seen, unseen
from exitguard.policy.load import load_rulebook
from exitguard.policy.parameters import NovaDefaultParameters
from exitguard.policy.schema import Check, Rulebook

FILE = "/etc/nova/nova.conf"
OPTION = "libvirt.default_pmu"
SHIPPED = load_rulebook()


def policy(parameters: NovaDefaultParameters | None) -> Rulebook:
    rules = tuple(
        rule.model_copy(update={"parameters": parameters}) if rule.check is Check.NOVA_DEFAULT_OFF else rule
        for rule in SHIPPED.policy.rules
    )
    return SHIPPED.model_copy(update={"policy": SHIPPED.policy.model_copy(update={"rules": rules})})


NAMED = policy(NovaDefaultParameters(option=OPTION, value="false"))


def option(value: str | None, *, file: str | None = FILE, name: str = OPTION) -> Observed[NovaOption]:
    return seen(FILE, NovaOption(name=name, file=file, value=value))


SAYS_OFF = option("False")
SAYS_ON = option("true")
OTHER = option(None)
UNSET = option(None, file=None)
UNREADABLE: Observed[NovaOption] = unseen(FILE, "permission denied", unlock="run as root")


def instance(element: PmuElement, number: int = 1) -> DomainFacts:
    xml = definition("custom", element)
    return domain(number=number, defined=xml, run=xml, runs=process("EPYC"), nova=nova(), generated=True)


PROOF = [instance(PmuElement.OFF)]
DISPROOF = [instance(PmuElement.ABSENT)]
NEITHER = [instance(PmuElement.ON)]
BOTH = [instance(PmuElement.OFF), instance(PmuElement.ABSENT, 2)]


def host(guests: list[DomainFacts], said: Observed[NovaOption] | None) -> FactsDocument:
    document = facts(*guests)
    return document.model_copy(update={"host": document.host.model_copy(update={"nova_option": said})})


def found(guests: list[DomainFacts], said: Observed[NovaOption] | None, rulebook: Rulebook = NAMED) -> Finding:
    (finding,) = [each for each in judge(host(guests, said), rulebook).findings if each.rule == "NOVA-DEFAULT-OFF"]
    return finding


@pytest.mark.parametrize("said", [None, SAYS_OFF, SAYS_ON, OTHER, UNSET, UNREADABLE])
@pytest.mark.parametrize(
    ("guests", "verdict"),
    [(PROOF, Verdict.PASS), (DISPROOF, Verdict.FAIL), (NEITHER, Verdict.UNKNOWN), (BOTH, Verdict.UNKNOWN), ([], Verdict.NOT_APPLICABLE)],
)
def test_the_option_changes_no_verdict(guests: list[DomainFacts], verdict: Verdict, said: Observed[NovaOption] | None) -> None:
    assert found(guests, said).verdict is verdict


@pytest.mark.parametrize(
    ("guests", "said", "sentence"),
    [
        (PROOF, SAYS_OFF, f"{FILE} says {OPTION} = false, which fits"),
        (PROOF, UNSET, f"and yet {OPTION} is not set: nova-compute has other settings"),
        (PROOF, SAYS_ON, f"and yet {FILE} does not say {OPTION} = false"),
        (DISPROOF, UNSET, f"{OPTION} is not set, which fits"),
        (DISPROOF, OTHER, f"{FILE} does not say {OPTION} = false, which fits"),
        (DISPROOF, SAYS_OFF, f"and yet {FILE} says {OPTION} = false: nova-compute was not started since it was set, reads another file"),
        (NEITHER, SAYS_OFF, f"{FILE} says {OPTION} = false, which proves nothing by itself"),
        (BOTH, UNSET, f"{OPTION} is not set, which proves nothing by itself"),
        (PROOF, UNREADABLE, f"{OPTION} is not known (permission denied)"),
        (PROOF, None, f"{OPTION} was not looked at: gather facts anew"),
        (PROOF, option("false", name="libvirt.another"), f"{OPTION} was not looked at: gather facts anew"),
    ],
)
def test_the_reason_says_whether_the_option_fits_the_witnesses(
    guests: list[DomainFacts], said: Observed[NovaOption] | None, sentence: str
) -> None:
    assert sentence in found(guests, said).reason


@pytest.mark.parametrize(
    ("said", "evidence"),
    [
        (SAYS_OFF, (FILE, f"{OPTION} = False")),
        (SAYS_ON, (FILE, f"{OPTION} = true")),
        (OTHER, (FILE, f"{OPTION} is something else than false")),
        (UNSET, (FILE, f"{OPTION} is not set")),
        (UNREADABLE, (FILE, "not seen: permission denied; would need run as root")),
        (None, ("nova.conf", f"{OPTION} was not looked at")),
    ],
)
def test_the_option_is_evidence(said: Observed[NovaOption] | None, evidence: tuple[str, str]) -> None:
    assert evidence in [(each.source, each.value) for each in found(PROOF, said).evidence]


@pytest.mark.parametrize(
    ("expected", "written", "fits"),
    [
        ("false", "0", True),
        ("off", "FALSE", True),
        ("true", "1", True),
        ("true", "0", False),
        ("never", "never", True),
        ("never", "no", False),
    ],
)
def test_a_boolean_is_the_same_in_every_spelling_and_another_text_to_the_letter(expected: str, written: str, fits: bool) -> None:  # noqa: FBT001 - a column
    rulebook = policy(NovaDefaultParameters(option=OPTION, value=expected))
    assert ("which fits" in found(PROOF, option(written), rulebook).reason) is fits


def test_a_policy_that_names_no_option_says_nothing_of_one() -> None:
    finding = found(PROOF, SAYS_OFF, SHIPPED)
    assert OPTION not in finding.reason + "".join(each.source + each.value for each in finding.evidence)
