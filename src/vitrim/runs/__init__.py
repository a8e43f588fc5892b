"""Run folders, files, progress, processes, and the description of the machine."""
