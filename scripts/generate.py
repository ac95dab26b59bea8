"""Writes what is generated from code: `generate.py`; or tells what is stale: `generate.py --check` (exit 1)."""

import sys
from pathlib import Path

from cli_reference import cli_document
from config_sample import reference, sample
from metrics_reference import metrics_document
from verdict_tables import verdicts_document

from exitguard.policy.json_schema import schema_files

ROOT = Path(__file__).resolve().parent.parent


def generated() -> dict[Path, str]:
    """Every generated file, by its path in the repository."""
    files = {
        ROOT / "docs" / "verdicts.md": verdicts_document(),
        ROOT / "docs" / "cli.md": cli_document(),
        ROOT / "docs" / "configuration.md": reference(),
        ROOT / "docs" / "metrics.md": metrics_document(),
        ROOT / "deploy" / "config.yaml": sample(),
    }
    for name, text in schema_files().items():
        files[ROOT / "policies" / "schemas" / name] = text
    return files


def main(arguments: list[str]) -> int:
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if arguments == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make generate` and commit it")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(generated()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
