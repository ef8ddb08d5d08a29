"""How tests divide settings between a `Run` and the call that takes it."""

import dataclasses

import hgrad_jax as hg

FIELDS = {field.name for field in dataclasses.fields(hg.Run)}


def run_and_rest(rule, settings):
    """Returns the Run of those settings that are its fields, and the other settings."""
    fields = {name: x for name, x in settings.items() if name in FIELDS}
    rest = {name: x for name, x in settings.items() if name not in FIELDS}
    return hg.Run(rule, **fields), rest


def run_with(function, rule, *arrays, **settings):
    """Returns what `function` (`unroll`, `vjp`, ...) makes of a rule, arrays and all settings."""
    run, rest = run_and_rest(rule, settings)
    return function(run, *arrays, **rest)
