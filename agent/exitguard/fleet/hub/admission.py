"""Who a caller is, by the token of its request, and whether a route lets that in."""

from datetime import datetime

from exitguard.fleet.hub.call import Caller, Host, RefusedError
from exitguard.fleet.keys import parse_host_key, parse_operator_token, sha256_of
from exitguard.model.hub import Role
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import Operator, host_of_key, operator_of_token

#: What a route asks of its caller: nothing, to be a host, or to be an operator of that role.
Access = Role | type[Host] | None
_SCHEME = "bearer "


def admit(store: HubStore, authorization: str | None, access: Access, now: datetime) -> Caller:
    """The caller. Raises RefusedError (401, 403) for one that the route does not let in, StoreError."""
    if access is None:
        return None
    caller = _caller(store, authorization, now)
    if caller is None:
        raise RefusedError(401, "unauthenticated", "Expected a token that counts, as `Authorization: Bearer TOKEN`.")
    if access is Host:
        if not isinstance(caller, Host):
            raise RefusedError(403, "forbidden", "Only hosts write here, each with its own key.")
        return caller
    if not isinstance(caller, Operator) or not isinstance(access, Role) or not caller.role.may(access):
        raise RefusedError(403, "forbidden", f"Expected an operator's token with the role {access} or a higher one.")
    return caller


def _caller(store: HubStore, authorization: str | None, now: datetime) -> Caller:
    if authorization is None or not authorization.lower().startswith(_SCHEME):
        return None
    text = authorization[len(_SCHEME) :].strip()
    key, token = parse_host_key(text), parse_operator_token(text)
    if key is not None:
        with store.reading() as connection:
            counts = host_of_key(connection, key.host_id, key.key_id, sha256_of(key.secret))
        return Host(key.host_id, key.key_id) if counts else None
    if token is not None:
        with store.reading() as connection:
            return operator_of_token(connection, token.token_id, sha256_of(token.secret), now)
    return None
