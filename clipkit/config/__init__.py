"""Settings: the schema, YAML and `key=value` overrides, and parts found by file name.

Lives here: `schema.py` (every setting, its default and its range), `load.py` (file + overrides ->
a frozen RunConfig), `parts.py` (kind -> file -> keyword-only signature -> checked arguments),
`redact.py` (secrets never reach a file). Imports no torch and no other room but `errors`, so a
mistake is reported before anything heavy is loaded.

To add a setting: a field with a default and a `description` in `schema.py`; only `engine/build.py`
reads it. To add a part kind: a file in its room that ends with `PART = TheClass`.
"""
