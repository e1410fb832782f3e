"""The page of `lightning serve`: HTML, style, script and languages, and the documentation of its routes.

`files` reads them once and says of what kind each is; `app` alone imports it.
"""
