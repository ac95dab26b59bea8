"""What a reading of machine code settles: every combination of what can be observed, and readings of real kernels."""

from collections.abc import Iterator
from itertools import chain, combinations, product
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.audit.kernel import machine_code_statement
from exitguard.model.kernel import Body, EvidenceMethod, KernelState, KernelStatement
from exitguard.model.machine_code import Callee, FieldOffset, Helper, MachineCode

PATH = "/lib/modules/6.1.0-56-amd64/kernel/arch/x86/kvm/kvm.ko"
TRIGGER: Helper = "kvm_pmu_trigger_event"
RETIRED: Helper = "kvm_pmu_instruction_retired"
OFFSET = FieldOffset(offset=0x98F8, sources=("BTF", "code"))
Bitmap = Literal["pmc_counting_instructions", "all_valid_pmc_idx", "other"]
SETS: tuple[Bitmap, ...] = ("pmc_counting_instructions", "all_valid_pmc_idx", "other")
CONDITION = "u8[u64[vcpu+0x0]+0x98f9] != 0"


def reading(helper: Helper | None = "kvm_pmu_trigger_event", **changes: object) -> MachineCode:
    """Debian 6.1 as it was read, with what a test is about replaced."""
    fields: dict[str, object] = {
        "path": PATH,
        "has_loop": False,
        "build_id": "adc52894baba874167c85a83e488aa5227aed415",
        "release": "6.1.0-56-amd64",
        "enable_pmu": OFFSET,
        "helper": helper,
        "helpers_present": (helper,) if helper is not None else (),
        "called_when_off": True if helper is not None else None,
        "called_when_on": True if helper is not None else None,
        "decided_by_skip": helper is not None,
        "callee": Callee(name=helper, body=Body.A, returns_when_empty=("all_valid_pmc_idx",)) if helper is not None else None,
    }
    return MachineCode.model_validate(fields | changes)


def callee(name: str = TRIGGER, **changes: object) -> Callee:
    return Callee.model_validate({"name": name, "body": Body.A, "returns_when_empty": ("all_valid_pmc_idx",)} | changes)


#: As the reader reads Debian's kvm.ko, and the shapes that vendors and compilers could make of it.
EXAMPLES: list[tuple[str, MachineCode, KernelState, Body | None, str]] = [
    ("Debian 5.10", reading(None, enable_pmu=None), KernelState.NOT_AFFECTED, None, "makes no PMU call, and neither"),
    ("Debian 6.1", reading(), KernelState.AFFECTED, Body.A, "is called wherever an instruction was skipped, and walks every counter"),
    ("Debian 6.12 and 6.16", reading(callee=callee(body=Body.B)), KernelState.AFFECTED, Body.B, "builds a bitmap of the counters"),
    (
        "Debian 6.18 and later",
        reading(RETIRED, helpers_present=(TRIGGER, RETIRED), callee=Callee(name=RETIRED, returns_when_empty=(SETS[0],))),
        KernelState.EQUIVALENT,
        None,
        "returns at once where nothing counts instructions",
    ),
    ("6.18 without the early exit", reading(RETIRED, callee=callee(RETIRED, body=Body.B)), KernelState.AFFECTED, Body.B, RETIRED),
    (
        "guarded 6.1",
        reading(called_when_off=False, conditions=(f"{CONDITION} (enable_pmu)",)),
        KernelState.GUARDED,
        Body.A,
        "is called only where kvm->arch.enable_pmu (at 0x98f8 of struct kvm, by BTF and code) is set",
    ),
    (
        "guarded, the callee not in the image",
        reading(called_when_off=False, callee=None, conditions=(CONDITION,)),
        KernelState.GUARDED,
        None,
        "is called only where kvm->arch.enable_pmu",
    ),
    (
        "guarded by code alone",
        reading(called_when_off=False, enable_pmu=FieldOffset(offset=6396, sources=("code",))),
        KernelState.GUARDED,
        Body.A,
        "(at 0x18fc of struct kvm, by code)",
    ),
    (
        "guarded in the callee's head",
        reading(callee=Callee(name=TRIGGER, returns_when_off=True)),
        KernelState.GUARDED,
        None,
        f"{TRIGGER} returns at once where kvm->arch.enable_pmu",
    ),
    ("6.1 whose field is not found", reading(enable_pmu=None, called_when_off=None, called_when_on=None), KernelState.AFFECTED, Body.A, ""),
    (
        "6.18 behind a condition",
        reading(RETIRED, conditions=(CONDITION,), callee=Callee(name=RETIRED, returns_when_empty=(SETS[0],))),
        KernelState.EQUIVALENT,
        None,
        "",
    ),
    ("a test of another field", reading(conditions=(CONDITION,)), KernelState.UNKNOWN, None, f"called only where {CONDITION}"),
    ("a guard the wrong way round", reading(called_when_on=False), KernelState.UNKNOWN, None, "the wrong way round"),
    ("a call that is never reached", reading(called_when_off=False, called_when_on=False), KernelState.UNKNOWN, None, "not recognised"),
    (
        "called when off, and not seen when on",
        reading(called_when_off=False, called_when_on=None),
        KernelState.UNKNOWN,
        None,
        "is not seen to be reached",
    ),
    ("guarded, with a loop", reading(called_when_off=False, has_loop=True), KernelState.UNKNOWN, None, "more PMU work may be inlined"),
    ("guarded by no known field", reading(called_when_off=False, enable_pmu=None), KernelState.UNKNOWN, None, "offset is not known"),
    (
        "a callee that returns, and a loop",
        reading(has_loop=True, callee=Callee(name=TRIGGER, returns_when_off=True)),
        KernelState.UNKNOWN,
        None,
        "more PMU work may be inlined",
    ),
    (
        "a callee that returns on no known field",
        reading(enable_pmu=None, called_when_off=None, called_when_on=None, callee=Callee(name=TRIGGER, returns_when_off=True)),
        KernelState.UNKNOWN,
        None,
        "offset is not known",
    ),
    ("a callee elsewhere", reading(callee=None), KernelState.UNKNOWN, None, "is not in the image"),
    ("a callee of no known shape", reading(callee=callee(body=None)), KernelState.UNKNOWN, None, "neither body A nor B"),
    (
        "a callee that could not be followed",
        reading(callee=callee(obstacle="jumps through a table")),
        KernelState.UNKNOWN,
        None,
        "could not be followed: jumps through a table",
    ),
    (
        "guarded before a callee that could not be followed",
        reading(called_when_off=False, callee=callee(obstacle="jumps through a table")),
        KernelState.GUARDED,
        Body.A,
        "",
    ),
    (
        "a callee with another early exit",
        reading(callee=callee(other_exits=(CONDITION,))),
        KernelState.UNKNOWN,
        None,
        f"returns at once where {CONDITION}",
    ),
    ("an unknown set of counters", reading(callee=callee(returns_when_empty=("other",))), KernelState.UNKNOWN, None, "which one is not"),
    ("a skip that does not decide", reading(decided_by_skip=False), KernelState.UNKNOWN, None, "whether that depends on the skip"),
    ("a helper that is not called", reading(None, helpers_present=(TRIGGER,)), KernelState.UNKNOWN, None, "exists and is not called"),
    ("two that are not called", reading(None, helpers_present=(TRIGGER, RETIRED)), KernelState.UNKNOWN, None, "exist and are not called"),
    ("no helper, and a loop", reading(None, has_loop=True), KernelState.UNKNOWN, None, "has a loop: one may be inlined"),
    ("what could not be read", reading(obstacle="the symbols are stripped"), KernelState.UNKNOWN, None, "the symbols are stripped"),
]


@pytest.mark.parametrize(("example", "state", "body", "words"), [each[1:] for each in EXAMPLES], ids=[each[0] for each in EXAMPLES])
def test_kernel_is_judged_by_what_its_instructions_prove(example: MachineCode, state: KernelState, body: Body | None, words: str) -> None:
    statement = machine_code_statement(example)
    assert (statement.state, statement.body, statement.method, statement.source) == (state, body, EvidenceMethod.MACHINE_CODE, PATH)
    assert words in statement.value


def callees() -> Iterator[Callee | None]:
    yield None
    sets = chain.from_iterable(combinations(SETS, size) for size in range(len(SETS) + 1))
    for empty, body, off, exits, torn in product(list(sets), (None, *Body), (False, True), ((), (CONDITION,)), (None, "torn")):
        yield Callee(name=TRIGGER, body=body, returns_when_off=off, returns_when_empty=empty, other_exits=exits, obstacle=torn)


def every_reading() -> Iterator[MachineCode]:
    """Every combination of what decides, those that contradict themselves included."""
    known = (None, False, True)
    all_callees = list(callees())
    helpers: tuple[Helper | None, ...] = (None, TRIGGER)
    all_present: tuple[tuple[Helper, ...], ...] = ((), (RETIRED,))
    for obstacle, helper, present, loop, field in product((None, "torn"), helpers, all_present, (False, True), (None, OFFSET)):
        for off, on, skip, conditions, called in product(known, known, (False, True), ((), (CONDITION,)), all_callees):
            yield MachineCode.model_construct(
                path=PATH,
                build_id=None,
                release=None,
                enable_pmu=field,
                helper=helper,
                helpers_present=present,
                has_loop=loop,
                called_when_off=off,
                called_when_on=on,
                decided_by_skip=skip,
                conditions=conditions,
                callee=called,
                obstacle=obstacle,
                listing=(),
            )


def proved(seen: MachineCode) -> KernelState:
    """The rules, as a table: the first line whose premises all hold speaks. Written apart from the code that it checks."""
    called, head = seen.helper is not None, seen.callee
    no_more = called and not seen.has_loop
    empty = head.returns_when_empty if head is not None else ()
    table = [
        (KernelState.UNKNOWN, [seen.obstacle is not None]),
        (KernelState.NOT_AFFECTED, [not called, not seen.helpers_present, not seen.has_loop]),
        (KernelState.UNKNOWN, [not called]),
        (KernelState.GUARDED, [no_more, seen.enable_pmu is not None, seen.called_when_off is False, seen.called_when_on is True]),
        (KernelState.UNKNOWN, [seen.called_when_off is False]),
        (KernelState.GUARDED, [no_more, seen.enable_pmu is not None, head is not None and head.returns_when_off]),
        (KernelState.EQUIVALENT, [no_more, "pmc_counting_instructions" in empty]),
        (
            KernelState.AFFECTED,
            [
                seen.decided_by_skip,
                seen.conditions == (),
                seen.called_when_on is not False,
                head is not None and head.body in (Body.A, Body.B) and head.other_exits == () and not head.returns_when_off,
                set(empty) <= {"all_valid_pmc_idx"},
                head is not None and head.obstacle is None,
            ],
        ),
        (KernelState.UNKNOWN, []),
    ]
    return next(state for state, premises in table if all(premises))


def test_no_combination_proves_more_or_less_than_its_premises() -> None:
    reached = set()
    for seen in every_reading():
        statement = machine_code_statement(seen)
        assert statement.state is proved(seen), seen
        assert statement.value, seen
        reached.add((statement.state, statement.body))
        if statement.state is KernelState.UNKNOWN:
            check_excluded(seen, statement)
        else:
            assert statement.excludes == ()
            assert seen.obstacle is None
    assert reached == {
        (KernelState.UNKNOWN, None),
        (KernelState.NOT_AFFECTED, None),
        (KernelState.EQUIVALENT, None),
        *((KernelState.AFFECTED, body) for body in Body),
        *((KernelState.GUARDED, body) for body in (None, *Body)),
    }


def check_excluded(seen: MachineCode, statement: KernelStatement) -> None:
    """What is not settled excludes only what the instructions contradict: no call where there is one, no condition where there is."""
    if seen.obstacle is not None or seen.helper is None:
        assert statement.excludes == ()
        return
    assert statement.excludes[0] is KernelState.NOT_AFFECTED
    head = seen.callee
    never = False in (seen.called_when_off, seen.called_when_on)
    spares = head is not None and (head.returns_when_off or head.other_exits != () or not set(head.returns_when_empty) <= {SETS[1]})
    assert (KernelState.AFFECTED in statement.excludes) is (never or seen.conditions != () or spares)
    assert set(statement.excludes) <= {KernelState.NOT_AFFECTED, KernelState.AFFECTED}


@given(st.builds(MachineCode))
def test_every_statement_is_one_line_of_bounded_length(seen: MachineCode) -> None:
    check_line(machine_code_statement(seen).value)


@given(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1, max_size=6).map(tuple))
def test_hostile_names_and_conditions_stay_one_line(name: str, conditions: tuple[str, ...]) -> None:
    for hostile in (
        reading(obstacle=name + "\nx" * 2000),
        reading(conditions=conditions),
        reading(callee=callee(name, other_exits=conditions)),
        reading(callee=callee(name, returns_when_off=True)),
    ):
        check_line(machine_code_statement(hostile).value)


def check_line(value: str) -> None:
    assert value == " ".join(value.split())
    assert len(value) <= 600


@pytest.mark.parametrize(("count", "more"), [(1, ""), (2, ""), (3, ""), (4, " and 1 more"), (7, " and 4 more")])
def test_many_conditions_are_counted_and_not_all_told(count: int, more: str) -> None:
    told = [f"u8[vcpu+{place}] != 0" for place in range(count)]
    value = machine_code_statement(reading(conditions=tuple(told))).value
    assert value == f"{TRIGGER} is called only where {' and '.join(told[:3])}{more}: a condition that is not recognised"


def test_line_that_is_too_long_is_cut_with_an_ellipsis_and_no_other() -> None:
    assert machine_code_statement(reading(obstacle="x" * 600)).value == "x" * 600
    assert machine_code_statement(reading(obstacle="x" * 601)).value == "x" * 599 + "…"


def test_reading_of_nothing_proves_nothing() -> None:
    """What was never walked may hold anything: no field of a reading defaults to a premise."""
    assert machine_code_statement(MachineCode(path=PATH)).state is KernelState.UNKNOWN
