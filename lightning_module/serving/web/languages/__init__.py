"""The page's words, a file for each language: `en.json` is English, and the names are those of HTML's `lang`.

To add a language, copy `en.json` to its name, such as `fr.json`, and translate the values. `language_name` is the
language's name in itself. What is in braces is filled in. Nothing else has to be changed; the tests look for missing
words and braces.
"""
