"""`exitguard schema`: the JSON Schema of a published document, or the names of all."""

from typing import Annotated

import typer

from exitguard.cli.options import OutputOption
from exitguard.cli.output import write_result


def schema(
    name: Annotated[str | None, typer.Argument(help="Which document; without it the names are listed.")] = None,
    output: OutputOption = None,
) -> None:
    """Print the JSON Schema of a document that exitguard writes or reads."""
    import json

    from exitguard import schemas

    if name is None:
        write_result("".join(f"{known}\n" for known in schemas.schema_names()), output)
        return
    if name not in schemas.schema_names():
        raise typer.BadParameter(f"there is no schema {name!r}: expected one of {', '.join(schemas.schema_names())}", param_hint="NAME")
    write_result(json.dumps(schemas.schema(name), indent=2) + "\n", output)
