"""WHAT SHOULD BE: the policy, the kernel and QEMU lineages, the cost matrix and the waivers. Pure but for load.py."""
