import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.grub import (
    BlsEntry,
    BootChoiceError,
    next_bls_release,
    next_menu_release,
    parse_bls_entry,
    parse_grub_config,
    parse_grubenv,
)

RECORDED = (Path(__file__).parent / "boot" / "debian12-saved-title-path" / "tree/boot/grub/grub.cfg").read_text()
DEFAULT = """
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
"""
MENU = """
menuentry 'First' --class os $menuentry_id_option 'id-first' {
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	linux	/boot/vmlinuz-1.0-first root=/dev/sda1 ro
}
submenu 'More' $menuentry_id_option 'id-more' {
	menuentry "Bob's \\"two\\" > one" --id id-two {
		linux /vmlinuz-2.0-two
	}
	menuentry 'It'\\''s three' { linux ($root)/vmlinuz-3.0-three; initrd /initrd }
	submenu 'Deeper' { menuentry '4' --id id-four { linuxefi /bzImage-4.0-four } }
}
menuentry 'Other system' { chainloader +1 }
"""


def release(saved: str, config: str = DEFAULT + MENU, **environment: str) -> str:
    return next_menu_release(parse_grub_config(config), {"saved_entry": saved, **environment})


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ("", "1.0-first"),
        ("0", "1.0-first"),
        ("id-first", "1.0-first"),
        ("First", "1.0-first"),
        ("1", "2.0-two"),
        ("More", "2.0-two"),
        ("1>1", "3.0-three"),
        ("id-more>id-two", "2.0-two"),
        ("More>It's three", "3.0-three"),
        ('More>Bob\'s "two" >> one', "2.0-two"),
        ("1>2>0", "4.0-four"),
        ("id-more>Deeper>id-four", "4.0-four"),
        ("gone", "1.0-first"),
        ("99", "1.0-first"),
        ("1>99", "2.0-two"),
    ],
)
def test_default_names_an_entry_by_index_title_or_id(saved: str, expected: str) -> None:
    assert release(saved) == expected


def test_one_shot_entry_goes_before_the_saved_one() -> None:
    assert release("0", next_entry="1>1") == "3.0-three"
    assert release("1>1", next_entry="") == "3.0-three"


def test_config_without_a_default_starts_the_first_entry() -> None:
    assert release("1>1", config=MENU) == "1.0-first"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "no menu entry"),
        ("menuentry 'a' {", "ends within a block"),
        ("}", "never opened"),
        ("menuentry 'a", "quote that does not close"),
        ("submenu 'a' { }", "is empty"),
        ("menuentry 'a' { chainloader +1 }", "loads no Linux kernel"),
        ("menuentry 'a' { linux /vmlinuz }", "holds no kernel release"),
        ("menuentry 'a' { if true; then linux /vmlinuz-1; else linux /vmlinuz-2; fi }", "one of several kernels"),
        ("set default=0\nset default=1\n" + MENU, "2 different ways"),
        ('set default="${chosen}"\n' + MENU, "only the boot itself can evaluate"),
        ("if [ $grub_platform = efi ]; then\nmenuentry 'a' { linux /vmlinuz-1 }\nfi\n" + MENU, "conditions that only the boot"),
        ("function entries {\nmenuentry 'a' { linux /vmlinuz-1 }\n}\n" + MENU, "conditions that only the boot"),
        ("submenu 'a' {\n" * 20 + "}\n" * 20, "more than 16 deep"),
    ],
)
def test_configuration_that_is_not_plain_has_a_reason(config: str, reason: str) -> None:
    with pytest.raises(BootChoiceError, match=reason):
        release("", config=config)


def test_conditional_entry_does_not_hinder_a_choice_by_id() -> None:
    conditional = "if true; then\nmenuentry 'a' --id id-a { linux /vmlinuz-1 }\nfi\n"
    assert release("id-first", config=DEFAULT + conditional + MENU) == "1.0-first"
    with pytest.raises(BootChoiceError, match="conditions"):
        release("id-a", config=DEFAULT + conditional + MENU)


def test_conditional_entry_behind_the_chosen_one_does_not_matter() -> None:
    assert release("0", config=DEFAULT + MENU + "if true; then\nmenuentry 'a' { fwsetup }\nfi\n") == "1.0-first"


def test_boot_without_initrd_that_failed_is_not_guessed_at() -> None:
    with pytest.raises(BootChoiceError, match="initrdfail"):
        release("0", initrdfail="1")


def test_comment_and_quoted_brace_are_not_structure() -> None:
    config = "# menuentry 'x' {\nmenuentry 'a { # b' { # don't\n linux /vmlinuz-7 \"quiet }\"\n}\n"
    assert release("", config=config) == "7"


def test_recorded_config_has_its_entries() -> None:
    menu = parse_grub_config(RECORDED).menu
    assert [(entry.title, len(entry.submenu or ()), entry.conditional) for entry in menu] == [
        ("Debian GNU/Linux", 0, False),
        ("Advanced options for Debian GNU/Linux", 4, False),
    ]


def test_environment_block_is_read_as_grub_writes_it() -> None:
    text = "# GRUB Environment Block\n# WARNING\nsaved_entry=a\\\\b=c\nempty=\n" + "#" * 100
    assert parse_grubenv(text) == {"saved_entry": "a\\b=c", "empty": ""}


BLS = "blscfg\nif [ x = efi ]; then\nmenuentry 'UEFI' --id uefi { fwsetup }\nfi\n"
ENTRIES = tuple(
    parse_bls_entry(f"m-{version}.conf", f"title T {version}\nlinux\t/vmlinuz-{version}\nlinux /second")
    for version in ("5.9", "5.14", "5.10")
)


def bls_release(saved: str, config: str = DEFAULT + BLS, entries: tuple[BlsEntry, ...] = ENTRIES, **environment: str) -> str:
    return next_bls_release(parse_grub_config(config), {"saved_entry": saved, **environment}, entries)


@pytest.mark.parametrize(
    ("saved", "expected"), [("", "5.14"), ("0", "5.14"), ("2", "5.9"), ("m-5.10", "5.10"), ("T 5.9", "5.9"), ("m-gone", "5.14")]
)
def test_loader_entry_is_chosen_by_id_title_or_rank(saved: str, expected: str) -> None:
    assert bls_release(saved) == expected


@pytest.mark.parametrize(
    ("saved", "config", "entries", "reason"),
    [
        ("", BLS, (), "there are none"),
        ("", MENU + BLS, ENTRIES, "before the loader entries"),
        ("3", DEFAULT + BLS, ENTRIES, "not one of the loader entries"),
        ("uefi", DEFAULT + BLS, ENTRIES, "not one of the loader entries"),
        ("", BLS, (BlsEntry(id="a", title=None, linux=None),), "loads no Linux kernel"),
    ],
)
def test_loader_entries_that_are_not_plain_have_a_reason(saved: str, config: str, entries: tuple[BlsEntry, ...], reason: str) -> None:
    with pytest.raises(BootChoiceError, match=reason):
        bls_release(saved, config, entries)


def test_counting_boots_is_not_guessed_at() -> None:
    counting = 'if [ -n "${boot_counter}" ]; then\n  set default=1\nfi\n'
    assert bls_release("m-5.9", DEFAULT + counting + BLS) == "5.9"
    with pytest.raises(BootChoiceError, match="counting boots"):
        bls_release("m-5.9", DEFAULT + counting + BLS, boot_counter="2")


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            [
                "menuentry",
                "submenu",
                "'a'",
                '"b"',
                "{",
                "}",
                "\n",
                ";",
                "if",
                "fi",
                "linux",
                "/vmlinuz-1",
                "set",
                "default=0",
                "'",
                "blscfg",
            ]
        )
    ).map(" ".join),
    st.text(max_size=20),
)
def test_arbitrary_config_yields_a_release_or_a_reason(config: str, saved: str) -> None:
    with contextlib.suppress(BootChoiceError):
        assert next_menu_release(parse_grub_config(config), {"saved_entry": saved})


@given(st.text(), st.text())
def test_arbitrary_entries_and_environment_never_raise(name: str, text: str) -> None:
    parse_grubenv(text)
    parse_bls_entry(name, text)
