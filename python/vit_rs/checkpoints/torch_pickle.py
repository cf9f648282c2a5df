"""The pickles of torch.save, looked through before torch's `weights_only` reads them.

Of what `weights_only` allows, weights need less: here every name that a pickle asks for is compared with a list, and
where a name is more than a name (a function that makes text into bytes without end, a class that allocates what it is
told) also what the pickle does with it. Nothing is executed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from typing import IO, TYPE_CHECKING, Any

from vit_rs.checkpoints.container import printable
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_old_pickles", "check_pickle"]

# Names that a pickle may ask for. torch's own list is longer by what allocates as many bytes as the file says
# (bytearray, tensor classes, typed storages), by DTensors, and by what the user's program has registered.
_ALLOWED = re.compile(
    r"collections (OrderedDict|Counter)|(builtins|__builtin__) (set|complex)|_codecs encode"
    r"|torch\._utils _rebuild_\w+|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch Tensor"
    r"|torch(\.storage)? (?!Typed)\w+Storage|torch Size|torch [a-z0-9_]+|torch\.serialization _get_layout"
    r"|argparse Namespace|numpy dtype|numpy\.(_core|core)\.multiarray scalar"
)
# What training scripts keep beside weights: values, not a whole model.
_VALUES = re.compile(
    r"(numpy|pathlib|types|builtins|__builtin__|collections|datetime|enum|omegaconf|yacs|easydict|ml_collections)\b.*"
)
_ENCODE = "_codecs encode"
_AS_TYPE = "torch._tensor _rebuild_from_type_v2"  # of a function, a type, the function's arguments, attributes
# Classes, not stand-ins, to torch's reader: they may say of which kind a storage or tensor is, and not be called.
_CLASSES = ("torch UntypedStorage", "torch.storage UntypedStorage", "torch Tensor")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# A list of texts and nothing else, by the codes of its operations without those that write the memo.
_LIST_OF_TEXTS = re.compile(r"\x80?\](\(X*e|Xa)*\.")


class _Name(str):
    """A name that the pickle asked for."""

    __slots__ = ()


_MARK, _OTHER = object(), object()


def check_pickle(path: Path, file: IO[bytes]) -> set[str]:
    """Look through one pickle without running it, and refuse what asks for more than tensors and plain values.

    Args:
        path: What messages call the file.
        file: The pickle; it is read to its end and no further.

    Returns:
        The keys of the storages that it asks for.

    Raises:
        CheckpointError: It asks for something else; the message says what.
        pickle.UnpicklingError: It is damaged, and so may the errors of `pickletools` say.
    """
    return _Look(path).through(file)


def check_old_pickles(path: Path, file: IO[bytes]) -> None:
    """Look through the five pickles of a file from before torch 1.6: magic, protocol, system, weights, storages' keys.

    The bytes of the storages follow in the order of the keys. torch fills no storage that the keys leave out: its
    tensors would hold whatever the memory held before.

    Raises:
        CheckpointError: A pickle asks for what is refused, or the keys are not those of the storages.
        pickle.UnpicklingError: A pickle is damaged, and so may the errors of `pickletools` say.
    """
    for _ in range(3):
        check_pickle(path, file)
    wanted = check_pickle(path, file)
    keys, codes = [], ""
    for opcode, argument, _position in pickletools.genops(file):
        is_text = isinstance(argument, str) and opcode.stack_after != [] and opcode.name != "GLOBAL"
        if is_text:
            keys.append(str(argument))
        if opcode.name not in _PUTS:
            codes += "X" if is_text else opcode.code
        if len(keys) > len(wanted):
            break
    if not _LIST_OF_TEXTS.fullmatch(codes) or sorted(keys) != sorted(wanted):
        raise CheckpointError(
            f"{path}: damaged: its list of storages has {len(keys)} keys, which are not those of the {len(wanted)} "
            "storages of its tensors, each once"
        )


class _Look:
    """One pickle's operations with nothing on the stack but texts, names and tuples of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[Any, Any] = {}
        self._storages: set[str] = set()

    def through(self, file: IO[bytes]) -> set[str]:
        for opcode, argument, _position in pickletools.genops(file):
            name = opcode.name
            if name == "PROTO" and argument != 2:
                raise CheckpointError(
                    f"{self._path}: refused: a pickle of protocol {argument}, expected 2, torch.save's own, all that "
                    "torch reads without running what a file says"
                )
            if name == "GLOBAL":
                self._stack.append(self._allowed(str(argument)))
            elif name in _GETS:
                if argument not in self._memo:
                    raise pickle.UnpicklingError(f"it asks for number {argument} of its memo, where nothing is")
                self._stack.append(self._memo[argument])
            elif name in _PUTS:
                if not self._stack or self._stack[-1] is _MARK:
                    raise pickle.UnpicklingError("it writes nothing into its memo")
                self._memo[argument] = self._stack[-1]
            elif name == "MARK":
                self._stack.append(_MARK)
            elif name in _TUPLES or name == "TUPLE":
                self._tuple(self._to_mark() if name == "TUPLE" else self._last(_TUPLES[name]))
            elif name == "BINPERSID":
                self._storage(self._last(1)[0])
            elif name == "REDUCE":
                self._call(*self._last(2))
            elif isinstance(argument, str):
                self._stack.append(argument)
            else:
                self._other(opcode)
        return self._storages

    def _allowed(self, name: str) -> _Name:
        if not _ALLOWED.fullmatch(name):
            shown = printable(name.replace(" ", ".", 1))
            if _VALUES.fullmatch(name):
                hint = "load it yourself where you trust it and save its state dict alone"
            else:
                hint = "a whole model that was pickled? save its state_dict() instead"
            raise CheckpointError(
                f"{self._path}: refused: it asks for {shown}, which no state dict needs ({hint}); nothing was executed"
            )
        return _Name(name)

    def _tuple(self, items: list[Any]) -> None:
        for item in items:
            if item == _ENCODE and isinstance(item, _Name):
                self._refuse_use(item)
            if isinstance(item, tuple):
                self._check_unused(item)
        self._stack.append(tuple(_OTHER if isinstance(item, tuple) else item for item in items))

    def _storage(self, place: Any) -> None:
        """Note a storage's key, the third of ("storage", type, key, device, size, ...)."""
        key = place[2] if isinstance(place, tuple) and len(place) > 4 else None
        if not isinstance(key, str) or isinstance(key, _Name):
            raise pickle.UnpicklingError("a storage without a key")
        self._storages.add(key)
        self._stack.append(_OTHER)

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, _Name) and function == _ENCODE:
            # As bytes are pickled by protocol 2; other codecs make a few letters into gigabytes, or run for hours.
            is_plain = isinstance(arguments, tuple) and len(arguments) == 2 and arguments[1] == "latin1"
            if not is_plain or type(arguments[0]) is not str:
                self._refuse_use(function)
        else:
            self._check_unused(function)
        if function == _AS_TYPE and isinstance(arguments, tuple) and arguments[1:2] == ("torch Tensor",):
            arguments = (arguments[0], *arguments[2:])
        self._check_unused(arguments)
        self._stack.append(_OTHER)

    def _other(self, opcode: pickletools.OpcodeInfo) -> None:
        before = opcode.stack_before
        if pickletools.markobject in before:
            used = self._to_mark()
            used += self._last(before.index(pickletools.markobject))
        else:
            used = self._last(len(before))
        for value in used:
            self._check_unused(value)
        self._stack.extend(_OTHER for _ in opcode.stack_after)

    def _check_unused(self, value: Any) -> None:
        """Refuse a name that is given to a function or kept, where it could be called."""
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, _Name) and each in (_ENCODE, *_CLASSES):
                self._refuse_use(each)

    def _refuse_use(self, name: _Name) -> None:
        raise CheckpointError(
            f"{self._path}: refused: it uses {name.replace(' ', '.')} otherwise than torch.save does; "
            "nothing was executed"
        )

    def _last(self, count: int) -> list[Any]:
        values = self._stack[len(self._stack) - count :] if count else []
        if len(values) != count or any(value is _MARK for value in values):
            raise pickle.UnpicklingError("it takes more from its stack than there is")
        del self._stack[len(self._stack) - count :]
        return values

    def _to_mark(self) -> list[Any]:
        values: list[Any] = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise pickle.UnpicklingError("it takes more from its stack than there is")
