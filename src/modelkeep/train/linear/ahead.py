"""Telling the processor what compiled code will read next.

The rows of a table of hashed features lie all over it, mostly outside the nearest caches. Asked for while the row
before is worked on, they are there when they are needed, also when another core keeps the farther caches busy.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_TO_WRITE, _TO_KEEP, _DATA = 1, 3, 1


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, table: Any, row: Any) -> Any:
    """Fetch the cache line that a row of a two-dimensional table begins in. A hint: nothing depends on it.

    Only from compiled code; the row must be there. https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = cgutils.unpack_tuple(builder, array.strides)[0]
        begin = builder.ptrtoint(array.data, stride.type)
        at = builder.add(begin, builder.mul(stride, builder.zext(arguments[1], stride.type)))
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        how = [ir.Constant(number, value) for value in (_TO_WRITE, _TO_KEEP, _DATA)]
        builder.call(function, [builder.inttoptr(at, byte), *how])
        return context.get_dummy_value()

    return types.void(table, types.uintp), generate
