"""The contracts of the documents: what is hashed, what is not, what an incarnation is, and what an exit code says."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exitguard.model.documents import FactsDocument
from exitguard.model.finding import Verdict, exit_code
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import Incarnation

HOST = "5a3c1f7e-98a5-4a83-9d0f-8a5b8f6c2d11"
DOMAIN = "813b0c1a-48cc-4074-9228-2fd0b7077ef5"
BOOT = "3ef9bb5d-ccc7-4842-912a-58321fbd61cd"


def test_an_observation_has_a_value_or_a_reason() -> None:
    assert seen("/proc/x", 0).known
    assert not unseen("/proc/x", "gone").known
    for wrong in ({}, {"value": 1, "reason": "both"}):
        with pytest.raises(ValidationError, match="either a value or a reason"):
            Observed[int](source="/proc/x", **wrong)


def test_an_observation_without_a_value_gives_its_reason_to_who_insists() -> None:
    assert seen("/proc/x", False).get() is False
    with pytest.raises(LookupError, match="/proc/x: permission denied"):
        unseen("/proc/x", "permission denied").get()


@given(st.uuids(), st.uuids(), st.uuids(), st.integers(min_value=0))
def test_an_incarnation_is_its_key(host: object, domain: object, boot: object, ticks: int) -> None:
    incarnation = Incarnation(host_id=str(host), domain_uuid=str(domain), boot_id=str(boot), qemu_start_ticks=ticks)
    assert Incarnation.from_key(incarnation.key) == incarnation


def test_a_restart_a_reboot_and_a_migration_each_begin_another_incarnation() -> None:
    one = Incarnation(host_id=HOST, domain_uuid=DOMAIN, boot_id=BOOT, qemu_start_ticks=4711)
    others = [one.model_copy(update=change) for change in ({"qemu_start_ticks": 4712}, {"boot_id": HOST}, {"host_id": BOOT})]
    assert len({each.key for each in (one, *others)}) == 4


@pytest.mark.parametrize("key", ["", "a/b/c/1", f"{HOST}/{DOMAIN}/{BOOT}", f"{HOST}/{DOMAIN}/{BOOT}/soon", f"{HOST}/{DOMAIN}/{BOOT}/1/2"])
def test_what_is_no_incarnation_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"incarnation|UUID|invalid literal"):
        Incarnation.from_key(key)


def test_an_error_beats_a_failure_beats_an_unknown() -> None:
    for size in range(len(Verdict) + 1):
        for verdicts in itertools.combinations(Verdict, size):
            found = set(verdicts)
            expected = 1 if Verdict.ERROR in found else 2 if Verdict.FAIL in found else 3 if Verdict.UNKNOWN in found else 0
            assert exit_code(found) == expected


def test_documents_can_grow_an_unknown_field_does_not_break_an_old_reader() -> None:
    grown = '{"source": "/proc/x", "value": 1, "added_in_a_later_version": true}'
    assert Observed[int].model_validate_json(grown) == seen("/proc/x", 1)


def test_a_facts_document_survives_json_with_its_hashes(facts_document: FactsDocument) -> None:
    again = FactsDocument.model_validate_json(facts_document.model_dump_json())
    assert again == facts_document
    assert (again.host_hash, again.domain_hashes) == (facts_document.host_hash, facts_document.domain_hashes)


def test_the_time_of_looking_is_not_hashed_and_the_order_of_domains_is_not_either(facts_document: FactsDocument) -> None:
    later = facts_document.model_copy(update={"observed_at": facts_document.observed_at.replace(year=2030)})
    turned = facts_document.model_copy(update={"domains": facts_document.domains[::-1]})
    assert FactsDocument.model_validate(later.model_dump()).host_hash == facts_document.host_hash
    assert FactsDocument.model_validate(turned.model_dump()).host_hash == facts_document.host_hash


def test_a_changed_domain_changes_its_own_hash_and_the_hosts_and_no_other(facts_document: FactsDocument) -> None:
    first, *others = facts_document.domains
    renamed = FactsDocument(
        observed_at=facts_document.observed_at,
        host=facts_document.host,
        domains=(first.model_copy(update={"name": "another"}), *others),
    )
    changed = {uuid for uuid, value in renamed.domain_hashes.items() if value != facts_document.domain_hashes[uuid]}
    assert changed == {first.uuid}
    assert renamed.host_hash != facts_document.host_hash
