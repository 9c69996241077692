"""The run folder: one writer, many readers, everything in formats others read."""
