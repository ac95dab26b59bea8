"""Findings: one rule's verdict on one subject."""

from enum import StrEnum

from exitguard.model.evidence import Evidence
from exitguard.model.record import Record
from exitguard.model.time import UtcTime


class Verdict(StrEnum):
    """What a rule concludes; `error` means that the check itself broke."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    WAIVED = "waived"
    NOT_APPLICABLE = "not_applicable"
    UNKNOWN = "unknown"
    ERROR = "error"


class Severity(StrEnum):
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


class SubjectKind(StrEnum):
    HOST = "host"
    DOMAIN = "domain"
    POLICY = "policy"
    CLOUD = "cloud"
    FLAVOR = "flavor"
    IMAGE = "image"
    INSTANCE = "instance"


#: What a cloud's API shows; all else is seen on a host.
OF_A_CLOUD = frozenset({SubjectKind.CLOUD, SubjectKind.FLAVOR, SubjectKind.IMAGE, SubjectKind.INSTANCE})


class Subject(Record):
    """Whom a finding is about: the id of a host, waiver, cloud, flavor or image, or the uuid of a domain or instance."""

    kind: SubjectKind
    id: str
    name: str


class Finding(Record):
    """One rule's verdict on one subject, the reason in a sentence, and what it rests on."""

    rule: str
    severity: Severity
    subject: Subject
    verdict: Verdict
    reason: str
    #: Since when the verdict has been this one; None where no history is kept.
    since: UtcTime | None = None
    evidence: tuple[Evidence, ...] = ()
    #: The remedy that the policy names for this rule, where one would help here.
    remedy: str | None = None
    #: The id of the waiver that covers a failing finding.
    waiver: str | None = None


EXIT_COMPLIANT = 0
EXIT_ERROR = 1
EXIT_NOT_COMPLIANT = 2
EXIT_UNKNOWN = 3
EXIT_USAGE = 64  # EX_USAGE of sysexits.h


def exit_code(verdicts: "set[Verdict]") -> int:
    """The exit code for a set of verdicts: an error beats a failure beats an unknown."""
    if Verdict.ERROR in verdicts:
        return EXIT_ERROR
    if Verdict.FAIL in verdicts:
        return EXIT_NOT_COMPLIANT
    if Verdict.UNKNOWN in verdicts:
        return EXIT_UNKNOWN
    return EXIT_COMPLIANT
