"""Judges schemas and YAML as quilt3 does: {"schemas": [[schema, value], ...], "yaml": [text, ...]} on stdin, answers on stdout."""

import datetime
import json
import sys

import jsonschema
import yaml


def judge(schema, value):
    schema = json.loads(schema)
    try:
        jsonschema.Draft7Validator.check_schema(schema)
    except jsonschema.SchemaError:
        return None
    return jsonschema.Draft7Validator(schema).is_valid(json.loads(value))


def plain(value):
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    if isinstance(value, (datetime.date, set)):
        return str(value)
    return value


def load(text):
    """A list of the value, or of nothing when it is refused."""
    try:
        return [plain(yaml.safe_load(text))]
    except (yaml.YAMLError, ValueError):
        return []


task = json.load(sys.stdin)
answers = {
    "schemas": [judge(schema, value) for schema, value in task["schemas"]],
    "yaml": [load(text) for text in task["yaml"]],
}
json.dump(answers, sys.stdout)
