"""`exitguard nova facts | audit | report`: an OpenStack cloud, observed through its API and joined with the facts of its hosts."""

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.log import configure_logging
from exitguard.cli.nova_inputs import AskedOfCloud, judged_cloud, observe_cloud
from exitguard.cli.options import ConfigOption, Format, FormatOption, OutputOption, PolicyOption, WaiversOption, some_path, some_text
from exitguard.cli.output import look_for, write_result
from exitguard.cli.refusal import Refusal
from exitguard.cli.remedy_setup import RemedyDirOption

if TYPE_CHECKING:
    from exitguard.model.cloud import CloudFacts
    from exitguard.model.instance import CloudReport
    from exitguard.report.page import Look

app = typer.Typer(
    help="An OpenStack cloud: where each instance's PMU setting comes from, and whether Nova keeps it. Changes nothing.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class CloudFormat(StrEnum):
    TABLE = "table"  # for people
    JSON = "json"  # for programs; `exitguard schema` describes it
    CSV = "csv"  # for spreadsheets
    MARKDOWN = "markdown"  # for tickets, wikis and tenants


class By(StrEnum):
    """As report/cloud_groups.py has them; that module is too heavy to load for `--help`."""

    PROJECT = "project"
    FLAVOR = "flavor"
    ZONE = "zone"
    AGGREGATE = "aggregate"
    BUILD = "build"
    HOST = "host"


CloudOption = Annotated[
    str | None,
    typer.Option("--cloud", metavar="NAME", parser=some_text, help="A cloud of clouds.yaml. Default: OS_CLOUD, or the OS_ variables."),
]
CloudFactsOption = Annotated[
    Path | None,
    typer.Option(
        "--cloud-facts",
        metavar="FILE",
        parser=some_path,
        help="What `exitguard nova facts --format json` wrote, instead of asking the API.",
    ),
]
HostsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="HOST-FACTS",
        parser=some_path,
        help="Files of facts of compute hosts, or a directory of them (see playbooks/facts.yml). Without any, what is defined and runs on "
        "the hosts is unknown.",
    ),
]
CloudTimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=1.0, max=600.0, help="How long one answer of the API may take."),
]


@app.command("facts")
def facts(
    context: typer.Context,
    *,
    cloud: CloudOption = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    remedy_dir: RemedyDirOption = None,
    timeout: CloudTimeoutOption = None,
) -> None:
    """Print what the API shows of flavors, images, instances and hosts, and why a part is missing. Asks with nothing but GET."""
    configure_logging(context.obj, os.environ)
    found = observe_cloud(AskedOfCloud(cloud=cloud, config=config, remedy_dir=remedy_dir, timeout=timeout))

    from exitguard.report.cloud_facts_table import cloud_facts_table
    from exitguard.report.cloud_json import json_pieces

    write_result(json_pieces(found) if output_format is Format.JSON else cloud_facts_table(found, look_for(output, os.environ)), output)


@app.command("audit")
def audit(
    context: typer.Context,
    *,
    hosts: HostsArgument = None,
    cloud: CloudOption = None,
    cloud_facts: CloudFactsOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    output_format: Annotated[
        CloudFormat,
        typer.Option("--format", "-f", help="table for people, json for programs, csv: a line an instance, markdown for tickets."),
    ] = CloudFormat.TABLE,
    output: OutputOption = None,
    config: ConfigOption = None,
    remedy_dir: RemedyDirOption = None,
    timeout: CloudTimeoutOption = None,
) -> None:
    """Join a cloud with the facts of its compute hosts, judge it by the policy, and say what is so. Changes nothing."""
    configure_logging(context.obj, os.environ)
    asked = AskedOfCloud(
        cloud=cloud,
        cloud_facts=cloud_facts,
        hosts=hosts,
        policy=policy,
        waivers=waivers,
        config=config,
        remedy_dir=remedy_dir,
        timeout=timeout,
    )
    _, report = judged_cloud(asked)
    _log(report)
    write_result(_audit(report, output_format, look_for(output, os.environ)), output)
    raise typer.Exit(report.summary.exit_code)


@app.command("report")
def report(
    context: typer.Context,
    *,
    hosts: HostsArgument = None,
    by: Annotated[By | None, typer.Option("--by", help="Count the instances by this.")] = None,
    project: Annotated[
        str | None,
        typer.Option("--project", metavar="ID", parser=some_text, help="Instead: a page for this project's owner, who sees nobody else's."),
    ] = None,
    cloud: CloudOption = None,
    cloud_facts: CloudFactsOption = None,
    policy: PolicyOption = None,
    waivers: WaiversOption = None,
    output_format: Annotated[
        CloudFormat | None, typer.Option("--format", "-f", help="Default: table with --by, markdown with --project, which has no table.")
    ] = None,
    output: OutputOption = None,
    config: ConfigOption = None,
    remedy_dir: RemedyDirOption = None,
    timeout: CloudTimeoutOption = None,
) -> None:
    """Count the instances of a cloud by something that they have in common, or write a page for a tenant.

    Exit code with --by as of `exitguard nova audit`; with --project 0 once the page is written.
    """
    if (by is None) == (project is None):
        raise typer.BadParameter("expected exactly one of --by and --project", param_hint="--by")
    if project is not None and output_format is CloudFormat.TABLE:
        raise typer.BadParameter("a page for a tenant is markdown, csv or json", param_hint="--format")
    configure_logging(context.obj, os.environ)
    asked = AskedOfCloud(
        cloud=cloud,
        cloud_facts=cloud_facts,
        hosts=hosts,
        policy=policy,
        waivers=waivers,
        config=config,
        remedy_dir=remedy_dir,
        timeout=timeout,
    )
    facts_of_cloud, judged = judged_cloud(asked)
    _log(judged)
    look = look_for(output, os.environ)
    if project is not None:
        write_result(_tenant(judged, facts_of_cloud, project, output_format or CloudFormat.MARKDOWN, look), output)
        return
    write_result(_groups(judged, by or By.PROJECT, output_format or CloudFormat.TABLE, look), output)
    raise typer.Exit(judged.summary.exit_code)


def _log(judged: "CloudReport") -> None:
    import structlog

    summary = judged.summary
    structlog.get_logger().info(
        "cloud_audit.finished",
        instances=len(judged.instances),
        hosts=judged.hosts_joined,
        exit_code=summary.exit_code,
        **summary.by_verdict,
    )


def _audit(judged: "CloudReport", output_format: CloudFormat, look: "Look") -> str | Iterable[str]:
    from exitguard.report.cloud_json import json_pieces
    from exitguard.report.cloud_markdown import cloud_csv, cloud_markdown
    from exitguard.report.cloud_table import cloud_table

    match output_format:
        case CloudFormat.TABLE:
            return cloud_table(judged, look)
        case CloudFormat.JSON:
            return json_pieces(judged)
        case CloudFormat.CSV:
            return cloud_csv(judged, look)
        case CloudFormat.MARKDOWN:
            return cloud_markdown(judged, look)


def _groups(judged: "CloudReport", by: By, output_format: CloudFormat, look: "Look") -> str | Iterable[str]:
    from exitguard.report.cloud_groups import GroupBy, group_instances
    from exitguard.report.cloud_groups_page import groups_csv, groups_markdown, groups_page
    from exitguard.report.cloud_json import json_pieces

    groups = group_instances(judged, GroupBy(by.value))
    match output_format:
        case CloudFormat.TABLE:
            return groups_page(groups, look)
        case CloudFormat.JSON:
            return json_pieces(groups)
        case CloudFormat.CSV:
            return groups_csv(groups, look)
        case CloudFormat.MARKDOWN:
            return groups_markdown(groups, look)


def _tenant(judged: "CloudReport", cloud: "CloudFacts", project: str, output_format: CloudFormat, look: "Look") -> Iterable[str]:
    from exitguard.model.finding import EXIT_UNKNOWN
    from exitguard.report.cloud_json import json_pieces
    from exitguard.report.cloud_tenant import tenant_csv, tenant_markdown, tenant_report

    if not cloud.servers.known:
        reason = f"exitguard: the instances of the cloud could not be seen: {cloud.servers.reason}"
        raise Refusal(reason, code=EXIT_UNKNOWN)
    told = tenant_report(judged, cloud, project)
    if not told.instances:
        projects = len({instance.project for instance in judged.instances})
        raise typer.BadParameter(
            f"no instance of project {project!r} was seen, among {len(judged.instances):,} of {projects:,} projects: expected the id of "
            "one, as `exitguard nova report --by project` lists them",
            param_hint="--project",
        )
    match output_format:
        case CloudFormat.JSON:
            return json_pieces(told)
        case CloudFormat.CSV:
            return tenant_csv(told, look)
        case _:
            return tenant_markdown(told, look)
