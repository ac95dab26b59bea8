#!/bin/sh
# Isolated (-I): neither the caller's directory nor PYTHON* variables decide what root runs. No bytecode is written (-B): what is
# there came with the package, and nothing else is to stay behind when it goes.
exec /opt/exitguard/bin/python -I -B -m exitguard "$@"
