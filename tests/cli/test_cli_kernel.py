"""`exitguard kernel inspect`: what the machine code of real modules settles, told, and written down for a fleet."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

sys.path.insert(0, str(Path(__file__).parent.parent / "facts" / "machine_code"))  # what compiles the modules

from small_modules import RELEASE, build_id_note, put
from standin_builder import CONFIGURATIONS, VARIANTS, Build, Shape, StandinBuilder, why_not

from exitguard.model.documents import KernelInspection
from exitguard.model.kernel import Body, KernelState
from exitguard.policy.load import load_rulebook, read_kernels
from exitguard.policy.schema import Provenance
from exitguard.schemas import schema

Run = Callable[..., subprocess.CompletedProcess[str]]

STANDIN_RELEASE = "6.1.0-standin"  # standin.c
PLAIN = CONFIGURATIONS[2]
BUILDS = {
    "guarded": Build(VARIANTS["plain"], Shape.A, PLAIN),
    "affected_a": Build(VARIANTS["none"], Shape.A, PLAIN),
    "affected_b": Build(VARIANTS["none"], Shape.B, PLAIN),
    "equivalent": Build(VARIANTS["none"], Shape.RETIRED, PLAIN),
    "not_affected": Build(VARIANTS["none"], Shape.NONE, PLAIN),
    "inverted": Build(VARIANTS["inverted"], Shape.A, PLAIN),
}
Modules = dict[str, Path]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modules]:
    """One module for each entry of BUILDS."""
    missing = next((reason for build in BUILDS.values() if (reason := why_not(build)) is not None), None)
    if missing is not None:
        pytest.skip(missing)
    builder = StandinBuilder(tmp_path_factory.mktemp("modules"))
    try:
        for build in BUILDS.values():
            builder.begin(build)
        yield {name: builder.module(build) for name, build in BUILDS.items()}
    finally:
        builder.close()


def inspected(result: subprocess.CompletedProcess[str]) -> KernelInspection:
    return KernelInspection.model_validate_json(result.stdout)


def copied(module: Path, folder: Path, name: str, *options: str) -> Path:
    """A module with a section changed or removed."""
    copy = folder / name
    subprocess.run(["objcopy", *options, str(module), str(copy)], check=True, timeout=60)
    return copy


# --- States and exit codes ---


@pytest.mark.parametrize(
    ("name", "verdict", "code"),
    [
        ("guarded", (KernelState.GUARDED, Body.A), 0),
        ("equivalent", (KernelState.EQUIVALENT, None), 0),
        ("not_affected", (KernelState.NOT_AFFECTED, None), 0),
        ("affected_a", (KernelState.AFFECTED, Body.A), 2),
        ("affected_b", (KernelState.AFFECTED, Body.B), 2),
        ("inverted", (KernelState.UNKNOWN, None), 3),
    ],
)
def test_each_state_has_its_exit_code_and_its_evidence(
    exitguard: Run, modules: Modules, name: str, verdict: tuple[KernelState, Body | None], code: int
) -> None:
    result = exitguard("kernel", "inspect", modules[name], "--format", "json")
    assert (result.returncode, result.stderr) == (code, "")
    (kernel,) = inspected(result).kernels
    assert (kernel.path, kernel.state, kernel.body) == (str(modules[name]), *verdict)
    assert [evidence.source for evidence in kernel.evidence] == [f"machine_code: {modules[name]}"]
    assert kernel.reason == kernel.evidence[0].value
    assert kernel.reading is not None
    assert kernel.reading.listing


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("guarded", "equivalent", "not_affected"), 0),
        (("guarded", "inverted"), 3),
        (("inverted", "affected_a", "guarded"), 2),
    ],
)
def test_affected_beats_unknown_beats_the_rest(exitguard: Run, modules: Modules, names: tuple[str, ...], code: int) -> None:
    assert exitguard("kernel", "inspect", *(modules[name] for name in names)).returncode == code


def test_file_that_is_no_kernel_is_unknown_with_the_reason(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "kvm.ko"
    file.write_text("This is not a kernel.\n")
    result = exitguard("kernel", "inspect", file)
    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout.startswith("unknown  release not known\n")
    assert "Expected a kernel module" in " ".join(result.stdout.split())


def test_every_file_that_is_not_there_is_named_and_nothing_is_read(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    result = exitguard("kernel", "inspect", tmp_path / "absent.ko", modules["guarded"], "6.1.0-0-absent")
    assert (result.returncode, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"exitguard: {tmp_path}/absent.ko: there is no such file or folder, and no kernel of that release")
    assert second.startswith("exitguard: 6.1.0-0-absent: there is no such file or folder, and no kernel of that release")


def test_folder_without_a_kernel_is_an_error(exitguard: Run, tmp_path: Path) -> None:
    result = exitguard("kernel", "inspect", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path}: holds no kvm.ko" in result.stderr


def test_unpacked_package_is_found_through(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    module = put(tmp_path, f"/package/lib/modules/{RELEASE}/kernel/arch/x86/kvm/kvm.ko", modules["guarded"].read_bytes())
    result = exitguard("kernel", "inspect", tmp_path / "package", "--format", "json")
    assert result.returncode == 0
    (kernel,) = inspected(result).kernels
    assert (kernel.path, kernel.release) == (str(module), STANDIN_RELEASE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("kvm.ko", "releases", "--running")),
        (("--live",), ("--live", "together with --running")),
        (("x", "--live"), ("together with --running",)),
        (("--running", "--btf-base", "vmlinuz"), ("--btf-base", "what runs shows its own")),
        (("x", "--save", "same", "--output", "same"), ("--save", "expected another file")),
        (("",), ("found an empty one",)),
    ],
)
def test_wrong_usage_says_what_was_expected(exitguard: Run, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = exitguard("kernel", "inspect", *arguments)
    assert (result.returncode, result.stdout) == (64, "")
    for word in words:
        assert word in result.stderr


def test_base_of_btf_that_is_not_there_is_named(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    result = exitguard("kernel", "inspect", modules["guarded"], "--btf-base", tmp_path / "vmlinuz")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path}/vmlinuz: expected the file of a kernel" in result.stderr


def test_base_of_btf_that_is_no_kernel_is_no_small_matter(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    base = put(tmp_path, "/vmlinuz", "no kernel")
    result = exitguard("kernel", "inspect", modules["guarded"], "--btf-base", base, "--format", "json")
    assert result.returncode == 3
    (kernel,) = inspected(result).kernels
    assert "named for its BTF" in kernel.reason


def test_live_reading_has_a_state_or_a_reason(exitguard: Run) -> None:
    result = exitguard("kernel", "inspect", "--running", "--live", "--format", "json")
    assert result.returncode in {0, 2, 3}
    (kernel,) = inspected(result).kernels
    assert kernel.path.startswith("/proc/kcore")
    assert kernel.reading is not None or kernel.reason


# --- The table ---


def test_one_kernel_is_told_with_the_instructions_that_decide_in_80_columns(exitguard: Run, modules: Modules) -> None:
    table = exitguard("kernel", "inspect", modules["affected_a"]).stdout
    assert table.startswith("affected, body A  ")
    assert "  > " in table
    assert "call kvm_pmu_trigger_event" in table
    assert "every guest, PMU on or off" in " ".join(table.split())
    assert "on AMD the call walks every counter for a PMU-off guest too" in " ".join(table.split())
    assert max(map(len, table.splitlines())) <= 80
    assert "\x1b" not in table


def test_listing_can_be_left_out(exitguard: Run, modules: Modules) -> None:
    table = exitguard("kernel", "inspect", modules["affected_a"], "--no-listing").stdout
    assert table.startswith("affected, body A  ")
    assert "  > " not in table


def test_many_kernels_are_a_table_and_the_unknown_ones_say_why(exitguard: Run, modules: Modules) -> None:
    result = exitguard("kernel", "inspect", *modules.values())
    lines = result.stdout.splitlines()
    assert lines[1] == "exit 2"
    assert lines[0] == "6 kernels  2 affected · 1 unknown · 1 guarded · 1 equivalent · 1 not affected"
    assert "  > " not in result.stdout
    assert lines[-1].strip()
    assert "kvm->arch.enable_pmu" in " ".join(result.stdout.partition("\nUnknown\n")[2].split())
    assert max(map(len, lines)) <= 80


def test_many_kernels_are_told_one_by_one_where_that_is_asked_for(exitguard: Run, modules: Modules) -> None:
    table = exitguard("kernel", "inspect", *modules.values(), "--listing").stdout
    assert table.count("\n  kvm_skip_emulated_instruction:\n") == len(modules)


def test_same_build_in_two_files_is_one_kernel_of_the_table(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    for name in ("guarded", "equivalent", "not_affected"):
        put(tmp_path, f"/{name}/lib/modules/{RELEASE}-{name}/kernel/arch/x86/kvm/kvm.ko", modules[name].read_bytes())
    put(tmp_path, f"/again/lib/modules/{RELEASE}-guarded/kernel/arch/x86/kvm/kvm.ko", modules["guarded"].read_bytes())
    table = exitguard("kernel", "inspect", *(tmp_path / name for name in ("guarded", "equivalent", "not_affected", "again"))).stdout
    assert table.startswith("3 kernels  1 guarded · 1 equivalent · 1 not affected\nexit 0\n")
    assert f"  {STANDIN_RELEASE}  2 files" in table


def test_name_of_a_file_cannot_act_on_the_terminal(exitguard: Run, tmp_path: Path) -> None:
    file = tmp_path / "kvm\x1b[2J.ko"
    file.write_bytes(b"\x7fELF")
    for form in ("table", "json"):
        result = exitguard("kernel", "inspect", file, "--format", form)
        assert result.returncode == 3
        assert "\x1b" not in result.stdout + result.stderr


# --- The document ---


def test_document_fits_its_schema_and_has_what_is_promised(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    output = tmp_path / "kernels.json"
    result = exitguard("kernel", "inspect", modules["affected_b"], tmp_path / "kernels.json.in", "--format", "json", "--output", output)
    assert (result.returncode, output.exists()) == (1, False)
    (tmp_path / "kernels.json.in").touch()
    result = exitguard("kernel", "inspect", modules["affected_b"], tmp_path / "kernels.json.in", "--format", "json", "--output", output)
    assert (result.returncode, result.stdout) == (2, "")
    document = json.loads(output.read_text())
    validator = Draft202012Validator(schema("kernel-inspection"))
    validator.validate(document)
    for kernel in document["kernels"]:
        assert {"path", "release", "build_id", "state", "body", "reason", "evidence"} <= set(kernel)
    assert document["kernels"][1]["reading"] is None
    del document["kernels"][0]["state"]
    assert not validator.is_valid(document)


# --- Builds for a fleet ---


def save(exitguard: Run, file: Path, *kernels: Path) -> subprocess.CompletedProcess[str]:
    return exitguard("kernel", "inspect", *kernels, "--save", file, "--no-listing")


def test_decided_builds_are_saved_and_the_others_named(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    file = tmp_path / "builds.yaml"
    result = save(exitguard, file, *modules.values())
    assert result.returncode == 2
    assert f"Saved in {file}: 5 builds." in result.stderr
    assert f"Not saved: {modules['inverted']}: its state is unknown." in result.stderr
    builds = read_kernels(file)[1].builds
    assert [build.state.value for build in builds] == ["guarded", "affected", "affected", "equivalent", "not_affected"]
    assert [build.body for build in builds][1:] == [Body.A, Body.B, None, None]
    assert {build.provenance for build in builds} == {Provenance.LAB}
    assert builds[1].note.startswith("By machine code, exitguard ")
    assert "kvm_pmu_trigger_event is called wherever an instruction was skipped" in builds[1].note


def test_host_with_a_saved_build_is_judged_by_it_without_any_file(
    exitguard: Run, modules: Modules, failing_host: Path, tmp_path: Path
) -> None:
    file = tmp_path / "builds.yaml"
    save(exitguard, file, modules["guarded"])
    (build,) = read_kernels(file)[1].builds
    put(failing_host, "/sys/module/kvm/notes/.note.gnu.build-id", build_id_note(build.build_id))
    put(failing_host, "/sys/module/kvm/initstate", "live\n")
    without = json.loads(exitguard("audit", "--sysroot", failing_host, "--no-store", "--format", "json").stdout)["host"]["kernel"]
    given = exitguard("audit", "--sysroot", failing_host, "--no-store", "--policy", file, "--format", "json")
    kernel = json.loads(given.stdout)["host"]["kernel"]
    assert without["state"] == "unknown"
    assert kernel["state"] == "guarded"
    assert build.build_id in kernel["reason"]
    assert load_rulebook((file,)).kernels.lineages == load_rulebook().kernels.lineages


def test_build_that_is_there_already_changes_nothing(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    file = tmp_path / "builds.yaml"
    save(exitguard, file, modules["guarded"])
    before, status = file.read_bytes(), file.stat()
    again = save(exitguard, file, modules["guarded"])
    assert (again.returncode, again.stderr) == (0, f"Nothing new for {file}: 1 build there already.\n")
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == (before, status.st_mtime_ns, status.st_ino)
    more = save(exitguard, file, modules["guarded"], modules["equivalent"])
    assert more.stderr == f"Saved in {file}: 1 build; 1 other was there already.\n"
    assert file.read_bytes().startswith(before)


def test_build_decided_otherwise_is_refused_with_both_sides_and_nothing_is_saved(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    file = tmp_path / "builds.yaml"
    save(exitguard, file, modules["guarded"])
    text = "# Mine.\n" + file.read_text().replace("state: guarded", "state: affected").replace("By machine code", "By a colleague")
    file.write_text(text)
    result = save(exitguard, file, modules["equivalent"], modules["guarded"])
    assert result.returncode == 1
    assert result.stdout.startswith("2 kernels")  # what was found is told all the same
    assert f"{file}:7: expected guarded" in result.stderr
    assert "as affected" in result.stderr
    assert "By a colleague" in result.stderr
    assert str(modules["guarded"]) in result.stderr
    assert "nothing was saved" in result.stderr
    assert file.read_text() == text


def test_two_files_that_claim_one_build_and_differ_are_refused(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    note = put(tmp_path, "/note", build_id_note("ab" * 20))
    twins = [
        copied(modules[name], tmp_path, f"{name}.ko", f"--update-section=.note.gnu.build-id={note}") for name in ("guarded", "affected_a")
    ]
    result = save(exitguard, tmp_path / "builds.yaml", *twins)
    assert result.returncode == 1
    assert f"build-id {'ab' * 20} is " in result.stderr
    assert not (tmp_path / "builds.yaml").exists()


def test_kernel_without_a_build_id_is_named_and_not_saved(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    module = copied(modules["guarded"], tmp_path, "kvm.ko", "--remove-section=.note.gnu.build-id")
    result = save(exitguard, tmp_path / "builds.yaml", module)
    assert result.returncode == 0
    assert f"Not saved: {module}: it has no build-id" in result.stderr
    assert f"Nothing to save: {tmp_path}/builds.yaml was left as it is." in result.stderr
    assert not (tmp_path / "builds.yaml").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: costs\nschema_version: 1\ncosts: []\n", "expected 'kernels', which has builds, found 'costs'"),
        ("- a\n", "expected a mapping"),
    ],
)
def test_file_that_is_none_for_builds_is_refused_before_anything_is_read(
    exitguard: Run, modules: Modules, tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "builds.yaml"
    file.write_text(text)
    result = save(exitguard, file, modules["guarded"])
    assert (result.returncode, result.stdout, file.read_text()) == (1, "", text)
    assert words in result.stderr


def test_folder_of_the_file_that_is_not_there_is_named(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    result = save(exitguard, tmp_path / "absent" / "builds.yaml", modules["guarded"])
    assert result.returncode == 1
    assert f"{tmp_path}/absent/builds.yaml: could not be written" in result.stderr


def test_saving_at_once_loses_no_build(exitguard: Run, modules: Modules, tmp_path: Path) -> None:
    file = tmp_path / "builds.yaml"
    decided = [module for name, module in modules.items() if name != "inverted"]
    with ThreadPoolExecutor(len(decided)) as pool:
        results = list(pool.map(lambda module: save(exitguard, file, module), decided))
    assert all("Saved in" in result.stderr for result in results)
    assert len(read_kernels(file)[1].builds) == len(decided)
