"""For the reference: sections `Example:` are read as doctests, and modules with fields get the signature of these."""

import re
from typing import Any

import griffe


class Signatures(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        fields = [
            field
            for field in cls.attributes.values()
            if field.annotation and "property" not in field.labels and "ClassVar" not in str(field.annotation)
        ]
        if "__init__" in cls.members or not fields:
            return
        kind = griffe.ParameterKind.positional_or_keyword
        given = [griffe.Parameter("self", kind=kind)]
        given += [griffe.Parameter(f.name, annotation=f.annotation, kind=kind, default=_default(f)) for f in fields]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*given)))


def _default(field: griffe.Attribute) -> Any:
    """The default of a field, also where `eqx.field` holds it."""
    value = None if field.value is None else str(field.value)
    if value is None or "field(" not in value:
        return value
    found = re.search(r"default=(\w+)", value)
    return found[1] if found else None
