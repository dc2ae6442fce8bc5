"""The inner code of the invisible mark: a convolutional code that spreads each bit over many, and its soft decoder.

Constraint length 9, rate 1/3, generators 557, 663, 711 (octal; Larsen, IEEE Transactions on Information Theory 19,
1973), ended in the state in which it begins. Decoded by the BCJR recursions with maxima for sums (Bahl, Cocke, Jelinek
and Raviv, IEEE Transactions on Information Theory 20, 1974; Robertson, Villebrun and Hoeher, ICC 1995).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

_GENERATORS: Final = (0o557, 0o663, 0o711)
_MEMORY: Final = 8
_STATES: Final = 1 << _MEMORY

Bits = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.float32]


def coded_length(bits: int) -> int:
    """How many bits carry `bits` of them."""
    return (bits + _MEMORY) * len(_GENERATORS)


def protect(bits: Bits) -> Bits:
    """The bits that carry `bits`, [n]: three for each, and those that lead back to the first state; [3 (n + 8)]."""
    state = 0
    signs = []
    for bit in [*bits, *[False] * _MEMORY]:
        register = state | int(bit) << _MEMORY
        signs.append(_SIGNS[int(bit), state] > 0)
        state = register >> 1
    return np.concatenate(signs)


def recover(sums: Sums) -> Sums:
    """How much more likely each bit is set than not, [n], from as much of each coded bit, [3 (n + 8)]."""
    steps = sums.reshape(-1, len(_GENERATORS))
    # [step, bit, state]: what a step says for each way out of each state.
    ways = np.einsum("sg,bxg->sbx", steps, _SIGNS)
    before = np.full((len(steps) + 1, _STATES), -np.inf, np.float32)
    before[0, 0] = 0
    for step, way in enumerate(ways):
        before[step + 1] = (before[step][None] + way).ravel()[_INTO].max(axis=1)
    after = np.full(_STATES, -np.inf, np.float32)
    after[0] = 0
    found = np.zeros(len(steps), np.float32)
    for step in range(len(steps) - 1, -1, -1):
        through = ways[step] + after[_NEXT]
        if step < len(steps) - _MEMORY:
            clear, set_ = (before[step][None] + through).max(axis=1)
            found[step] = set_ - clear
        after = through.max(axis=0)
    return found[:-_MEMORY]


def _signs() -> Sums:
    """[bit, state, generator]: 1 where the coded bit is set, -1 where not."""
    registers = np.arange(_STATES)[None] | np.arange(2)[:, None] << _MEMORY
    parities = [
        [[int(one & generator).bit_count() & 1 for generator in _GENERATORS] for one in row] for row in registers
    ]
    return (2 * np.array(parities) - 1).astype(np.float32)


_SIGNS: Final = _signs()
_NEXT: Final = (np.arange(_STATES)[None] | np.arange(2)[:, None] << _MEMORY) >> 1
"""[bit, state]: the state after a bit."""
_INTO: Final = np.argsort(_NEXT.ravel(), kind="stable").reshape(_STATES, 2)
"""[state, 2]: the ways, as places in [bit, state], that lead into a state."""
