"""The proof that two files hold the same network: a list of checks, their verdict, and the report.

`parity.check_parity` does it for an exported file, `import_proof.check_imports` for an imported one. `checks` compare,
`torch_side` and `keras_side` compute, `report` and `page` tell.
"""
