"""The proof that two files hold the same network: a list of checks, their verdict, and the report.

`parity.check_parity` proves an exported file, `import_proof.check_imports` an imported one. `checks` compares,
`torch_side` and `keras_side` compute, `report` and `page` present the result.
"""
