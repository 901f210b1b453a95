"""Reads a SAM template and works out its values, far enough to run it locally.

Deploying from the template itself keeps one source of truth: what a test runs is what is deployed.
Names are settled before anything is created, so that resources may refer to each other in any order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml


class TemplateError(Exception):
    """The template asks for something this loader does not know; the message says where."""


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short tags."""


def _short_tag(loader: _Loader, suffix: str, node: yaml.Node) -> dict:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if name == "Fn::GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {name: value}


_Loader.add_multi_constructor("!", _short_tag)


def parse(text: str) -> dict:
    """The template as plain data: `!Sub x` and the like become `{"Fn::Sub": "x"}`."""
    return yaml.load(text, Loader=_Loader)


NO_VALUE = object()
"""What `AWS::NoValue` is; properties with it vanish."""


@dataclass
class Template:
    """A template with everything needed to work out a value in it.

    `references` and `attributes` are asked for resources: `Ref` by logical id, `GetAtt` by id and name.
    """

    body: dict
    directory: Path
    parameters: dict[str, str]
    pseudo: dict[str, str]
    references: Callable[[str], object]
    attributes: Callable[[str, str], object]
    _conditions: dict[str, bool] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        declared = self.body.get("Parameters") or {}
        unknown = sorted(set(self.parameters) - set(declared))
        if unknown:
            raise TemplateError(f"the template has no parameter {', '.join(unknown)}; it has {', '.join(declared)}")
        values = {name: p["Default"] for name, p in declared.items() if "Default" in p} | self.parameters
        missing = sorted(set(declared) - set(values))
        if missing:
            raise TemplateError(f"these parameters have no default and need a value: {', '.join(missing)}")
        self._values = {name: self._typed(value, declared[name]["Type"]) for name, value in values.items()}

    @staticmethod
    def _typed(value: object, kind: str) -> object:
        if kind == "CommaDelimitedList" or kind.startswith("List<"):
            return [item.strip() for item in str(value).split(",")] if value != "" else []
        return str(value)

    def resources(self) -> dict[str, dict]:
        """The resources whose condition holds, their properties not worked out yet."""
        return {
            name: resource
            for name, resource in self.body["Resources"].items()
            if "Condition" not in resource or self.condition(resource["Condition"])
        }

    def properties(self, name: str) -> dict:
        """A resource's properties, worked out, on top of the template's globals for its type."""
        resource = self.body["Resources"][name]
        kind = resource["Type"].removeprefix("AWS::Serverless::")
        shared = (self.body.get("Globals") or {}).get(kind) or {}
        return self.value(_merged(shared, resource.get("Properties") or {}), name)

    def condition(self, name: str) -> bool:
        """Whether a named condition holds."""
        if name not in self._conditions:
            conditions = self.body.get("Conditions") or {}
            if name not in conditions:
                raise TemplateError(f"no condition named {name}")
            self._conditions[name] = self._test(conditions[name], f"Conditions.{name}")
        return self._conditions[name]

    def _test(self, node: object, where: str) -> bool:
        match node:
            case {"Condition": name}:
                return self.condition(name)
            case {"Fn::Equals": [left, right]}:
                return str(self.value(left, where)) == str(self.value(right, where))
            case {"Fn::Not": [inner]}:
                return not self._test(inner, where)
            case {"Fn::And": parts}:
                return all(self._test(part, where) for part in parts)
            case {"Fn::Or": parts}:
                return any(self._test(part, where) for part in parts)
        raise TemplateError(f"{where}: no such condition function: {node}")

    def value(self, node: object, where: str) -> object:
        """A node with its intrinsic functions replaced by what they give."""
        if isinstance(node, list):
            values = [self.value(item, where) for item in node]
            return [value for value in values if value is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            [(function, argument)] = node.items()
            if function == "Ref" or function.startswith("Fn::"):
                return self._call(function, argument, where)
        values = {key: self.value(item, f"{where}.{key}") for key, item in node.items()}
        return {key: value for key, value in values.items() if value is not NO_VALUE}

    def _call(self, function: str, argument: object, where: str) -> object:
        match function:
            case "Ref":
                return self._reference(argument)
            case "Fn::GetAtt":
                return self._attribute(*argument)
            case "Fn::Sub":
                return self._substitute(argument, where)
            case "Fn::If":
                condition, yes, no = argument
                return self.value(yes if self.condition(condition) else no, where)
            case "Fn::Join":
                separator, items = argument
                return separator.join(str(item) for item in self.value(items, where))
            case "Fn::Select":
                index, items = argument
                return self.value(items, where)[int(self.value(index, where))]
            case "Fn::Split":
                separator, text = argument
                return self.value(text, where).split(separator)
            case "Fn::FindInMap":
                table, first, second = (self.value(part, where) for part in argument)
                return self.body["Mappings"][table][first][second]
        raise TemplateError(f"{where}: {function} is not known here")

    def _reference(self, name: str) -> object:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name in self.pseudo:
            return self.pseudo[name]
        if name in self._values:
            return self._values[name]
        return self.references(name)

    def _attribute(self, name: str, attribute: str) -> object:
        return self.attributes(name, attribute)

    def _substitute(self, argument: object, where: str) -> str:
        text, extra = (argument, {}) if isinstance(argument, str) else argument
        extra = {name: self.value(value, where) for name, value in extra.items()}

        def replace(match: re.Match) -> str:
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in extra:
                return str(extra[name])
            if "." in name:
                return str(self._attribute(*name.split(".", 1)))
            return str(self._reference(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)


def _merged(shared: dict, own: dict) -> dict:
    """SAM's rule for globals: maps are merged, lists are added up, anything else is overridden."""
    merged = dict(shared)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and not _is_call(value):
            value = _merged(merged[key], value)
        elif isinstance(value, list) and isinstance(merged.get(key), list):
            value = merged[key] + value
        merged[key] = value
    return merged


def _is_call(node: dict) -> bool:
    return len(node) == 1 and next(iter(node)).startswith(("Ref", "Fn::"))
