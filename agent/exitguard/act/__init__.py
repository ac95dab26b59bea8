"""ACT: carries out what was planned, through Ansible, and writes down each thing before it is done."""
