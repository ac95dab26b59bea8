"""A facts document as `test:///default` and this machine give one, with a second domain beside the driver's own."""

import pytest

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import FactsDocument


@pytest.fixture(scope="session")
def facts_document() -> FactsDocument:
    facts = observe(AuditRequest(uri="test:///default")).facts
    (only,) = facts.domains
    second = only.model_copy(update={"uuid": "813b0c1a-48cc-4074-9228-2fd0b7077ef5", "name": "second"})
    return FactsDocument(observed_at=facts.observed_at, host=facts.host, domains=(only, second))
