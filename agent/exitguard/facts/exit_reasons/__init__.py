"""Exits of all guests of this host by thread and reason, exactly: a histogram that the kernel keeps for a short time.

`reading.py` is the face: `why_not` says what stands against it, `read_exit_reasons` counts, `count_exits` tells runs apart.
`instance.py` makes and removes what that takes; `remove_leftovers` takes away what a killed process of ours left behind.
`histogram.py` is pure: what is written to the kernel, and what it writes.

Where a host has no such histograms, `facts/traced_exits.py` counts with perf.
"""
