"""Examples of every verb: its help, docs/cli.md and its man page all show these, and a test parses each."""

from collections.abc import Mapping

#: By the words after `exitguard`; "" is the command itself. Whole lines as they are typed, short enough for 80 columns.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "exitguard audit",
        "exitguard report --only fail",
        "exitguard explain DOM-PMU-EFFECTIVE",
    ),
    "audit": (
        "exitguard audit",
        "exitguard audit --format json --output audit.json",
        "exitguard audit --sysroot /srv/images/compute-17 --no-store",
    ),
    "report": (
        "exitguard report --only fail",
        "exitguard report --since 2026-01-31T00:00:00Z",
        "exitguard report --fleet --group-by kernel",
        "exitguard report --format html --output fleet.html audits/",
    ),
    "savings": (
        "exitguard savings",
        "exitguard savings --since 2026-01-31T00:00:00Z",
        "exitguard savings --format json --output savings.json",
        "exitguard savings --fleet --at 2026-01-31T00:00:00Z",
    ),
    "measure": (
        "exitguard measure",
        "exitguard measure --loop cpuid --loop msr --seconds 5",
        "exitguard measure --cpu 3 --format json",
    ),
    "explain": (
        "exitguard explain DOM-PMU-EFFECTIVE",
        "exitguard explain not_propagated",
        "exitguard explain web-1 --stored",
    ),
    "doctor": (
        "exitguard doctor",
        "exitguard doctor --connect qemu:///system",
    ),
    "facts": (
        "exitguard facts",
        "exitguard facts --format json --output facts/compute-17.json",
    ),
    "kernel": (
        "exitguard kernel inspect --running",
        "exitguard kernel inspect 6.1.0-56-amd64",
    ),
    "kernel inspect": (
        "exitguard kernel inspect --running",
        "exitguard kernel inspect linux-image-6.1.0-56-amd64/",
        "exitguard kernel inspect kvm.ko.xz --btf-base vmlinuz --save builds.yaml",
    ),
    "nova": (
        "exitguard nova facts --cloud production --format json --output cloud.json",
        "exitguard nova audit --cloud-facts cloud.json facts/",
    ),
    "nova facts": (
        "exitguard nova facts --cloud production",
        "exitguard nova facts --format json --output cloud.json",
    ),
    "nova audit": (
        "exitguard nova audit --cloud production facts/",
        "exitguard nova audit --cloud-facts cloud.json --format csv facts/",
    ),
    "nova report": (
        "exitguard nova report --by flavor --cloud-facts cloud.json facts/",
        "exitguard nova report --project 7c1e0d --output tenant.md facts/",
    ),
    "plan": (
        "exitguard plan",
        "exitguard plan --format json --output plan.json",
        "exitguard plan --inventory hosts.yaml facts/",
        "exitguard plan --fleet --inventory hosts.sh --format json",
    ),
    "approve": (
        "exitguard approve plan.json --comment CHG-1042",
        "exitguard approve plan.json --approver 'A. Operator' --hours 4",
    ),
    "apply": (
        "exitguard apply --check plan.json",
        "exitguard apply --inventory hosts.yaml plan.json",
        "exitguard apply --here",
    ),
    "rollout": (
        "exitguard rollout status",
        "exitguard rollout pause",
    ),
    "rollout status": (
        "exitguard rollout status",
        "exitguard rollout status 20260131 --format json",
    ),
    "rollout pause": (
        "exitguard rollout pause",
        "exitguard rollout pause 20260131",
    ),
    "rollout abort": (
        "exitguard rollout abort",
        "exitguard rollout abort 20260131",
    ),
    "rollout resume": (
        "exitguard rollout resume",
        "exitguard rollout resume 20260131 --inventory hosts.yaml",
    ),
    "rollback": (
        "exitguard rollback --show 20260131",
        "exitguard rollback 20260131 --inventory hosts.yaml",
    ),
    "daemon": (
        "exitguard daemon",
        "exitguard --log-format json daemon --config agent.yaml",
    ),
    "inventory": ("exitguard inventory --list",),
    "simulate": (
        "exitguard simulate --hosts 1000 --looks 24 --load hub.sqlite",
        "exitguard simulate --hub http://127.0.0.1:8470 --enrolment-file secret",
    ),
    "hub": (
        "exitguard hub serve --database hub.sqlite",
        "exitguard hub enrolment --name rack-7 --hosts 40",
        "exitguard hub token --name ops --role operator",
    ),
    "hub serve": (
        "exitguard hub serve --database hub.sqlite",
        "exitguard hub serve --database postgresql://exitguard@db.example.org/hub",
    ),
    "hub enrolment": (
        "exitguard hub enrolment --name rack-7 --hosts 40",
        "exitguard hub enrolment --name rack-7 --revoke",
    ),
    "hub token": (
        "exitguard hub token --name grafana",
        "exitguard hub token --name ops --role operator --days 30",
    ),
    "hub host": ("exitguard hub host revoke 7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11",),
    "hub host revoke": ("exitguard hub host revoke 7c0a2f7e-98a5-4a83-9d0f-8a5b8f6c2d11",),
    "policy": (
        "exitguard policy show",
        "exitguard policy check site.yaml",
    ),
    "policy check": (
        "exitguard policy check",
        "exitguard policy check site.yaml builds.yaml",
    ),
    "policy show": (
        "exitguard policy show",
        "exitguard policy show site.yaml --format json",
    ),
    "waiver": ("exitguard waiver check waivers.yaml",),
    "waiver check": (
        "exitguard waiver check waivers.yaml",
        "exitguard waiver check waivers.yaml --policy site.yaml",
    ),
    "config": (
        "exitguard config show --effective",
        "exitguard config check",
    ),
    "config show": (
        "exitguard config show",
        "exitguard config show --effective --config agent.yaml",
    ),
    "config check": (
        "exitguard config check",
        "exitguard config check agent.yaml",
    ),
    "schema": (
        "exitguard schema",
        "exitguard schema audit --output audit.schema.json",
    ),
}

_AS_IT_IS = "\b"  # Click wraps the paragraph that follows no more


def examples_of(verb: str) -> str:
    """The end of a verb's help. A line stays a line, however narrow the terminal, so that it can be copied."""
    return "\n".join([_AS_IT_IS, "Examples:", *(f"  {line}" for line in EXAMPLES[verb])])
