"""Griffe extensions: what griffe cannot read in the source of the package."""

import importlib
import inspect
import re

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences `>>>` examples, which Markdown takes for quotations."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(
                lambda match: f"```pycon\n{match.group()}\n```",
                obj.docstring.value,
            )


class Declared(griffe.Extension):
    """Adds the arguments that a class declares: signature and docstring."""

    def on_class_instance(self, *, cls, **kwargs):
        module = importlib.import_module(cls.module.path)
        found = getattr(module, cls.name, None)
        if not getattr(found, "declared", None) or not cls.docstring:
            return
        cls.docstring.value = inspect.getdoc(found)
        for name in found.declared:
            if name in cls.members:
                cls.del_member(name)
        cls.set_member("__init__", _constructor(found))


def _constructor(cls):
    parameters = inspect.signature(cls.__init__).parameters.values()
    return griffe.Function(
        "__init__",
        parameters=griffe.Parameters(
            *(
                griffe.Parameter(
                    each.name,
                    kind=getattr(griffe.ParameterKind, each.kind.name.lower()),
                    default=None
                    if each.default is each.empty
                    else repr(each.default),
                )
                for each in parameters
            )
        ),
    )
