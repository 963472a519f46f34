"""Bundled recipes, each a YAML file; read through `importlib.resources` as `cachedit_cli.recipes`."""
