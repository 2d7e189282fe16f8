"""Calls that must not type-check: each marked line fails, in mypy and in pyright, with what its comment says.

`# error: text` is part of the message of both; `# error: text of mypy // text of pyright` names them apart.
"""

import msgspec


class Order(msgspec.Struct, frozen=True):
    order_id: str
    cents: int = 0


Order(7)  # error: expected "str" // is not assignable to "str"
Order("o-1").cents = 1  # error: is read-only
Order("o-1").missing  # error: "missing"
