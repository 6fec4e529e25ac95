"""What is run, never imported by a lesson: `python -m tools.NAME` from the repository's root."""
