"""The web service of `lightning serve`: photos come by HTTP, both twins' answers go back, and a page shows them.

A photo's way: `uploads` reads it from the request within the `limits`, `answers` decodes it and gives it to each
`served_twin`, which computes what waits together. `explanation` says where a twin looks and why it is unsure. `app` has
the routes, `server` the connections and how they end; `served_files` and `model_facts` know the run, `counters` what is
counted. The page is in `web`.
"""
