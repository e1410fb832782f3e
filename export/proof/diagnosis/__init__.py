"""Why twins differ, if the error shows a known pattern."""
