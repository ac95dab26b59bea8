"""What say.py and whoever tests it agree on: shared code beside a playbook is found."""

GREETING = "said by"
