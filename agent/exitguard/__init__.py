"""exitguard: which KVM hosts and guests waste work on every VM exit because of the guest PMU, and what to do about it."""

__version__ = "0.1.0"
