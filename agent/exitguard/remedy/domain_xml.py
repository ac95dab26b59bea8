"""The one edit of a domain XML that exitguard makes, what proves that it was no other, and what forbids it. Pure.

The Ansible module that carries it out on a host uses this very file, by the link `playbooks/module_utils/exitguard_domain_xml.py`:
it imports the standard library only, and Python 3.8 runs it.

The text is partly a tenant's. It is bounded, a document type is refused, and whatever does not fit raises DomainXmlRefusedError. The
edit is made in the text, at the offsets where a parser found the elements: ElementTree would write the namespace prefixes of Nova's
metadata and of <qemu:commandline> anew. Format: https://libvirt.org/formatdomain.html
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Union
from xml.parsers import expat

#: Twice what libvirt's protocol carries in one string (REMOTE_STRING_MAX in src/remote/remote_protocol.x).
LIMIT_BYTES = 8 << 20
#: As deep as libxml2 goes by itself.
LIMIT_DEPTH = 256
LIMIT_ELEMENTS = 100_000

ON, OFF, ABSENT = "on", "off", "absent"
STATES = (ON, OFF, ABSENT)

#: The features that libvirt prints before <pmu> (enum virDomainFeature in src/conf/domain_conf.h); newer ones come after it.
_FEATURES_BEFORE_PMU = frozenset({"acpi", "apic", "pae", "hap", "viridian", "privnet", "hyperv", "kvm", "pvspinlock", "capabilities"})
#: After which <features> is printed where it was missing (virDomainDefFormatInternalSetRootName).
_ELEMENTS_BEFORE_FEATURES = frozenset({"os", "idmap"})

# The marks by which facts/domain_xml.py tells owners, which no host's module can import; tests/remedy holds the two together.
#: An operator's mark: `virsh metadata DOMAIN urn:exitguard:domain:1 --key exitguard --set '<locked/>' --config`
LOCK_NAMESPACE = "urn:exitguard:domain:1"
#: Metadata that tools leave without owning the definition afterwards (prefixes). Any other metadata has an owner.
_NOTES = ("http://libosinfo.org/", "https://github.com/cockpit-project/", LOCK_NAMESPACE)
_MANAGERS = {
    "http://openstack.org/xmlns/libvirt/nova/": "OpenStack Nova",
    "http://ovirt.org/": "oVirt",
    "http://kubevirt.io": "KubeVirt",
    "http://opennebula.org/": "OpenNebula",
    "http://www.proxmox.com/": "Proxmox",
    "https://wiki.gnome.org/Apps/Boxes": "GNOME Boxes",
}
_SYSINFO_MANAGERS = {"openstack foundation": "OpenStack Nova", "cloudstack kvm hypervisor": "Apache CloudStack", "ovirt": "oVirt"}

_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class DomainXmlRefusedError(ValueError):
    """The text is not a domain XML that is edited here; the message says why."""


class _Element:
    """One element: `name` is `namespace}local` or `local`; `start` and `close` are the byte offsets of its first and last tag."""

    __slots__ = ("attributes", "close", "content", "name", "start")

    def __init__(self, name: str, attributes: dict[str, str], start: int) -> None:
        self.name = name
        self.attributes = attributes
        self.start = start
        self.close = start
        self.content: list[_Content] = []

    def children(self, *names: str) -> list[_Element]:
        """The child elements of these names, or all."""
        return [child for child in self.content if isinstance(child, _Element) and (not names or child.name in names)]

    def below(self, name: str) -> Iterator[_Element]:
        """The elements of this name at any depth."""
        for child in self.children():
            if child.name == name:
                yield child
            yield from child.below(name)

    def has_only(self, *kinds: type) -> bool:
        """Whether nothing is in it but white space and pieces of these kinds."""
        return all(isinstance(piece, kinds) or (isinstance(piece, str) and not piece.strip()) for piece in self.content)


class _Aside:
    """A comment or a processing instruction."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


#: What is between two tags.
_Content = Union[_Element, _Aside, str]  # noqa: UP007 - evaluated, by Python 3.8 too


def pmu_element(xml: str) -> str:
    """What <features><pmu state=/> says: on, off or absent; <pmu/> means on. Raises DomainXmlRefusedError."""
    return _state(_pmu_of(_features_of(_parse(xml)[1])))


def why_not_ours(xml: str) -> str | None:
    """Why nobody but somebody else may change this definition; None where libvirt's own operator owns it. Raises DomainXmlRefusedError."""
    _, root = _parse(xml)
    entries = [child for metadata in root.children("metadata") for child in metadata.children()]
    if any(entry.name == LOCK_NAMESPACE + "}locked" for entry in entries):
        return "locked by an operator's mark in its metadata"
    for entry in entries:
        namespace, separator, _ = entry.name.rpartition("}")
        if not separator or not namespace.startswith(_NOTES):
            owner = next((name for prefix, name in _MANAGERS.items() if namespace.startswith(prefix)), None)
            return f"{owner or 'an unknown manager'} owns the definition, by its metadata"
    for sysinfo in root.children("sysinfo"):
        for entry in sysinfo.below("entry"):
            manager = _SYSINFO_MANAGERS.get("".join(piece for piece in entry.content if isinstance(piece, str)).strip().lower())
            if manager is not None:
                return f"{manager} owns the definition, by its sysinfo"
    return None


def with_pmu(xml: str, state: str) -> str:
    """The same text with <pmu> on, off or absent, and nothing else touched; where it is so already, the text itself.

    The element stands where libvirt would print it. An absent one takes an otherwise empty <features> with it, as libvirt prints
    none. Raises DomainXmlRefusedError.
    """
    if state not in STATES:
        raise ValueError(f"a PMU state {state!r}: expected one of {', '.join(STATES)}")
    data, root = _parse(xml)
    features = _features_of(root)
    pmu = _pmu_of(features)
    if _state(pmu) == state:
        return xml
    tag = f"<pmu state='{state}'/>"
    if pmu is not None and features is not None:
        emptied = pmu if len(features.children()) > 1 else features
        edited = _replaced(data, *_span(data, emptied), "") if state == ABSENT else _replaced(data, pmu.start, _end(data, pmu), tag)
    elif features is None:
        anchors = root.children(*_ELEMENTS_BEFORE_FEATURES) or root.children()
        if not anchors:
            raise DomainXmlRefusedError("an empty <domain>: expected at least its <name> and <os>")
        indent = _indent(data, anchors[-1])
        edited = _inserted(data, _end(data, anchors[-1]), indent, _block(indent, tag))
    elif features.has_only():
        edited = _replaced(data, features.start, _end(data, features), _block(_indent(data, features), tag))
    else:
        edited = _beside_its_like(data, features, tag)
    # A text that was made to mislead must not get further than here.
    if not differs_only_in_pmu(xml, edited) or pmu_element(edited) != state:
        raise DomainXmlRefusedError("the edit would touch more than <pmu>: refused")
    return edited


def _beside_its_like(data: bytes, features: _Element, tag: str) -> str:
    """<pmu> among other features, where libvirt prints it."""
    before = [child for child in features.children() if child.name in _FEATURES_BEFORE_PMU]
    if before:
        return _inserted(data, _end(data, before[-1]), _indent(data, before[-1]), tag)
    return _inserted(data, _open_end(data, features), _indent(data, features.children()[0]), tag)


def _block(indent: str | None, tag: str) -> str:
    return f"<features>{tag}</features>" if indent is None else f"<features>\n{indent}  {tag}\n{indent}</features>"


def _inserted(data: bytes, at: int, indent: str | None, new: str) -> str:
    return _replaced(data, at, at, new if indent is None else f"\n{indent}{new}")


def _replaced(data: bytes, start: int, end: int, new: str) -> str:
    return (data[:start] + new.encode() + data[end:]).decode()


def _span(data: bytes, element: _Element) -> tuple[int, int]:
    """From where to where an element is taken out: with the line feed and the white space before it, where it begins its line."""
    indent = _indent(data, element)
    return element.start - (0 if indent is None else len(indent) + 1), _end(data, element)


def _indent(data: bytes, element: _Element) -> str | None:
    """The white space before an element that begins its line; None where it does not."""
    at = element.start
    while at and data[at - 1 : at] in (b" ", b"\t"):
        at -= 1
    return data[at : element.start].decode() if data[at - 1 : at] == b"\n" else None


def _open_end(data: bytes, element: _Element) -> int:
    """Where its first tag ends. `>` may stand in an attribute's value, `<` and the value's own quote may not."""
    at = element.start + 1
    while data[at : at + 1] != b">":
        quote = data[at : at + 1]
        at = data.index(quote, at + 1) + 1 if quote in (b"'", b'"') else at + 1
    return at + 1


def _end(data: bytes, element: _Element) -> int:
    end = _open_end(data, element)
    return end if data[end - 2 : end] == b"/>" else data.index(b">", element.close) + 1


def differs_only_in_pmu(before: str, after: str) -> bool:
    """Whether two definitions are the same but for <pmu>, secrets included; also true of equal ones. Raises DomainXmlRefusedError.

    Structure is compared: white space between elements, namespace prefixes, quotes, the order of attributes, that of features and their
    place do not count, since libvirt prints them anew.
    """
    return _comparable(before) == _comparable(after)


def where_they_differ(before: str, after: str) -> str:
    """The element where two definitions begin to differ in more than <pmu>, as a path of names; "" where they do not."""
    path: list[str] = []
    olds, news = _comparable(before), _comparable(after)
    for index, (old, new) in enumerate(zip(olds, news)):  # noqa: B905 - Python 3.8 has no strict; neither begins the other
        if old != new:
            # An element that stands in one of them only, or that has other attributes there.
            began = [token for token in (old, new) if token[0] == "<"]
            added = [new] if new in began and old in news[index:] else began
            return "/".join([*path, *(token[1].rpartition("}")[2] for token in added[:1])])[:200]
        if old[0] == "<":
            path.append(old[1].rpartition("}")[2])
        elif old[0] == ">":
            path.pop()
    return ""


def fingerprint(xml: str) -> str:
    """`sha256:` over what a definition says, without its secrets: the same whether libvirt was asked for them or not.

    What differs_only_in_pmu() leaves out is not in it either, but <pmu> is. Raises DomainXmlRefusedError.
    """
    tokens = list(_tokens(_parse(xml)[1], (), keep_secrets=False, keep_pmu=True))
    return "sha256:" + hashlib.sha256(json.dumps(tokens, separators=(",", ":")).encode()).hexdigest()


def features_diff(before: str, after: str, name: str) -> str:
    """A unified diff of <features> and of nothing else, so that nothing else of a definition is shown. "" where there is none.

    Raises DomainXmlRefusedError.
    """
    lines = difflib.unified_diff(_features_lines(before), _features_lines(after), f"{name} before", f"{name} after", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _features_lines(xml: str) -> list[str]:
    data, root = _parse(xml)
    features = _features_of(root)
    if features is None:
        return []
    return ((_indent(data, features) or "") + data[features.start : _end(data, features)].decode()).split("\n")


def _comparable(xml: str) -> list[Any]:
    return list(_tokens(_parse(xml)[1], (), keep_secrets=True, keep_pmu=False))


def _tokens(element: _Element, parents: tuple[str, ...], *, keep_secrets: bool, keep_pmu: bool) -> Iterator[Any]:
    """An element as a flat list: ["<", name, attributes], its content, [">"]."""
    if _is_secret(element, parents) and not keep_secrets:
        return
    path = (*parents, element.name)
    if path == ("domain", "features", "pmu"):
        if keep_pmu:
            yield from (["<", "pmu", [["state", _state(element)]]], [">"])
        return
    content: list[list[Any]] = []
    # White space counts in a leaf only. In <features>, and in a disk's <source> that may have lost its cookies, no text does.
    is_leaf = not element.children()
    has_text = path != ("domain", "features") and (keep_secrets or path[-2:] != ("disk", "source"))
    # libvirt prints <features> in a place of its own, wherever it was written: it counts as the first.
    pieces = sorted(element.content, key=lambda piece: not isinstance(piece, _Element) or (*path, piece.name) != ("domain", "features"))
    for piece in pieces:
        if isinstance(piece, _Element):
            content.append(list(_tokens(piece, path, keep_secrets=keep_secrets, keep_pmu=keep_pmu)))
        elif isinstance(piece, _Aside):
            content.append([["aside", piece.text]])
        elif has_text and (piece.strip() or is_leaf):
            content.append([["text", piece]])
    if path == ("domain", "features"):
        content = sorted(filter(None, content), key=json.dumps)
        if not content and not element.attributes:
            return
    secret = _secret_attributes(element, parents) if not keep_secrets else ()
    yield ["<", element.name, sorted([name, value] for name, value in element.attributes.items() if name not in secret)]
    for tokens in content:
        yield from tokens
    yield [">"]


# What libvirt prints with VIR_DOMAIN_XML_SECURE only (VIR_DOMAIN_DEF_FORMAT_SECURE in src/conf/domain_conf.c of 9.0 and 11.3): the
# password of a display, and the cookies of a disk that is read by HTTP. Every other secret is referred to by its uuid.


def without_secrets(xml: str) -> str:
    """The same text without its passwords and cookies, as libvirt prints it to whoever may not see them. Raises DomainXmlRefusedError."""
    data, root = _parse(xml)
    spans = list(_secret_spans(data, root, ()))
    for start, end in reversed(spans):
        data = data[:start] + data[end:]
    return data.decode()


def _secret_spans(data: bytes, element: _Element, parents: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    if _is_secret(element, parents):
        yield _span(data, element)
        return
    names = [name.encode() for name in _secret_attributes(element, parents)]
    if names:
        for attribute in _ATTRIBUTE.finditer(data, element.start, _open_end(data, element)):
            if attribute[1] in names:
                yield attribute.span()
    for child in element.children():
        yield from _secret_spans(data, child, (*parents, element.name))


def _is_secret(element: _Element, parents: tuple[str, ...]) -> bool:
    return element.name == "cookies" and parents[:2] == ("domain", "devices") and parents[-1] == "source"


def _secret_attributes(element: _Element, parents: tuple[str, ...]) -> tuple[str, ...]:
    return ("passwd",) if element.name == "graphics" and parents == ("domain", "devices") else ()


def _features_of(root: _Element) -> _Element | None:
    found = root.children("features")
    if len(found) > 1:
        raise DomainXmlRefusedError(f"{len(found)} <features> elements: libvirt writes at most one")
    if found and (found[0].attributes or not found[0].has_only(_Element)):
        raise DomainXmlRefusedError("<features> with attributes, text or comments: libvirt writes none")
    return found[0] if found else None


def _pmu_of(features: _Element | None) -> _Element | None:
    found = features.children("pmu") if features is not None else []
    if len(found) > 1:
        raise DomainXmlRefusedError(f"{len(found)} <pmu> elements: libvirt writes at most one")
    if found and (set(found[0].attributes) - {"state"} or not found[0].has_only()):
        raise DomainXmlRefusedError("<pmu> with more than its state: libvirt writes nothing else")
    return found[0] if found else None


def _state(pmu: _Element | None) -> str:
    if pmu is None:
        return ABSENT
    state = pmu.attributes.get("state", ON)  # since libvirt 1.2.12
    if state not in (ON, OFF):
        raise DomainXmlRefusedError(f"<pmu state={state[:40]!r}>: expected on or off")
    return state


def _parse(xml: str) -> tuple[bytes, _Element]:
    """The text in UTF-8, and its root. Raises DomainXmlRefusedError."""
    try:
        data = xml.encode()
    except UnicodeEncodeError:
        raise DomainXmlRefusedError("not XML text: it holds half a character") from None
    if len(data) > LIMIT_BYTES:
        raise DomainXmlRefusedError(f"{len(data)} bytes of XML, expected at most {LIMIT_BYTES}")
    parser = expat.ParserCreate("utf-8", "}")  # whatever encoding its declaration names, libvirt's text is UTF-8
    parser.buffer_text = True
    document = _Element("", {}, 0)
    open_elements = [document]
    count = 0

    def on_start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(open_elements) > LIMIT_DEPTH:
            raise DomainXmlRefusedError(f"elements nested more than {LIMIT_DEPTH} deep: refused")
        if count > LIMIT_ELEMENTS:
            raise DomainXmlRefusedError(f"more than {LIMIT_ELEMENTS} elements: refused")
        element = _Element(name, attributes, parser.CurrentByteIndex)
        on_piece(element)
        open_elements.append(element)

    def on_end(_name: str) -> None:
        open_elements.pop().close = parser.CurrentByteIndex

    def on_piece(piece: _Content) -> None:
        open_elements[-1].content.append(piece)

    def on_doctype(*_: object) -> None:
        raise DomainXmlRefusedError("the XML declares a document type, which libvirt never writes: refused")

    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    parser.CharacterDataHandler = on_piece
    parser.CommentHandler = lambda text: on_piece(_Aside(f"!{text}"))
    parser.ProcessingInstructionHandler = lambda target, text: on_piece(_Aside(f"?{target} {text}"))
    parser.StartDoctypeDeclHandler = on_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DomainXmlRefusedError(f"not well-formed XML: {error}") from None
    root = document.children()[0]
    if root.name != "domain":
        raise DomainXmlRefusedError(f"<{root.name[:80]}> where <domain> was expected")
    return data, root
