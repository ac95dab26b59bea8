"""The agent as a system service: audits on a schedule and after events, told to systemd, the journal and Prometheus."""
