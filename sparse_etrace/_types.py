"""Names for the types of what a user hands over."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

Model = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # state, out = model(state, x)
Loss = Callable[[PyTree, PyTree], PyTree]  # of out and y: a scalar; with `has_aux` a pair of it and more
Json = dict[str, Any]  # what a file of results holds
Values = ArrayLike | Sequence  # an array, or a list of numbers or of lists
Metric = Callable[[PyTree, PyTree], Array]  # of out and y: a scalar


@runtime_checkable
class Column(Protocol):
    """Values one after the other: a list, an array, a column of pandas, polars or Arrow."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator: ...

    def __getitem__(self, place: int, /) -> Any: ...
