"""Nova's metadata in a domain XML: the image and the flavor's id, which some releases tell, and bounds on what anybody may write there."""

import pytest

from exitguard.facts.domain_xml import parse

UUID = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
NOVA_1_1 = "http://openstack.org/xmlns/libvirt/nova/1.1"


def domain(inside: str) -> str:
    return f"<domain type='kvm'><name>guest</name><uuid>{UUID}</uuid>{inside}</domain>"


@pytest.mark.parametrize(
    ("root", "image"),
    [
        (f"<root type='image' uuid='{UUID.upper()}'/>", UUID),
        (f"<root type='volume' uuid='{UUID}'/>", None),
        (f"<root uuid='{UUID}'/>", None),
        ("<root type='image' uuid=''/>", None),
        ("<root type='image'/>", None),
        (f"<root type='image' uuid='{'a' * 5000}'/>", None),
        (f"<root xmlns='urn:mine' type='image' uuid='{UUID}'/>", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_image_of_an_instance_is_the_one_below_its_root_disk(root: str, image: str | None, version: str) -> None:
    namespace = f"http://openstack.org/xmlns/libvirt/nova/{version}"
    nova = parse(domain(f"<metadata><instance xmlns='{namespace}'>{root}</instance></metadata>")).nova
    assert nova is not None
    assert nova.image == image


def test_what_nova_does_not_tell_is_left_out_so_that_older_facts_keep_their_hash() -> None:
    nova = parse(domain(f"<metadata><instance xmlns='{NOVA_1_1}'/></metadata>")).nova
    assert nova is not None
    assert not {"image", "flavor_id"} & nova.model_dump(mode="json").keys()


def test_metadata_of_any_length_is_bounded_in_the_facts() -> None:
    long = "x" * 100_000
    xml = domain(f"""<metadata><instance xmlns='{NOVA_1_1}'><package version='{long}'/><name>{long}</name>
        <creationTime>{long}</creationTime><flavor name='{long}' id='{long}'><extraSpecs><extraSpec name='hw:pmu'>{long}</extraSpec>
        </extraSpecs></flavor><image uuid='{long}'><properties><property name='hw_pmu'>{long}</property></properties></image>
        <owner><project uuid='{long}'/></owner><root type='image' uuid='{long}'/></instance></metadata>""")
    nova = parse(xml).nova
    assert nova is not None
    assert len(nova.model_dump_json()) < 10_000
