"""The command line: arguments in, one call, an answer out. It starts without torch."""
