"""Why twins differ, if the error shows a known pattern.

`cause` looks at which check fails and how; `layer_faults` computes what a layer would give with a likely fault, such as
another epsilon or axis, and a fault that explains the difference is named.
"""
