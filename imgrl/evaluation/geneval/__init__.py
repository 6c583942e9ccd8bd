"""The GenEval benchmark: its rules (``judge``)."""
