"""A throw-away virtual machine straight on /dev/kvm that measures what a VM exit costs. Runs only where a person asks for it."""
