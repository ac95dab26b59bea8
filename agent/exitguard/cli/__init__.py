"""The command line: one file a verb, thin. A verb reads options, calls one function of the core, writes one page or document."""
