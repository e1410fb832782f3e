"""The page of `lightning serve`, and its page about the interface; `languages` has their words."""
