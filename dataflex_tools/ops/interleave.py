"""The order in which K domains take turns: position -> (domain, how many of it came before), computed instead of stored.

The domains are the leaves of a binary tree. A node that has got m items has given floor(m a + f) of them to its left child
(a Sturmian word; a: the left share of the node's weight, f = 1/2 at the start) and the rest to its right one. So each
node is off its share of its parent's items by half an item, and a domain of weight w after p items by

    |count - p w| <= 1/2 * (sum of w / W_u over u = the leaf and its ancestors below the root),   W_u: weight under u

which is under 1 for up to four domains; for 5 to 200 of random weights it was 0.8 to 1.15, and counts off by 1.05.
For two domains any window of n items holds n w of a domain to less than one item; for more, to less than twice the bound:
windows within one item need a balanced word, which for most weights does not exist (Fraenkel's conjecture; Altman, Gaujal
and Hordijk 2000, "Balanced sequences and optimal routing", J. ACM 47). The best that can be promised for the prefixes of all
weights is 1 - 1/(2K - 2), by going through all positions (Tijdeman 1980, "The chairman assignment problem", Discrete
Mathematics 32 [recall]).
"""

import math
from collections.abc import Sequence

import numpy as np

# k domains of positive weight, N nodes of the tree (leaves first, root last), B positions

_BITS = 62
_ONE = 1 << _BITS  # shares and phases are multiples of 2^-62, so that whole arithmetic in 64 bits is exact
_EDGE = 2.0**-8  # phases stay this far from 0 and 1, so that a share cut off at 2^-62 does not move a whole count
_HALF_BITS = np.uint64(31)
_LOW = np.uint64((1 << 31) - 1)
_GOALS = (2.0, 2.1, 2.2)  # twice the bound hoped for: a lower goal more often ends in no room for the last nodes


def whole_weights(weight_K: np.ndarray) -> list[int]:
    """Weights as whole numbers in the same proportions, the largest 62 bits long, positive ones at least 1."""
    exponent = math.frexp(float(weight_K.max()))[1]
    return [max(1, int(math.ldexp(value, _BITS - exponent))) if value > 0 else 0 for value in weight_K.tolist()]


class Interleaving:
    """Endless order of the domains with `whole_K` > 0, in these proportions.

    `owed_K`: items each domain is behind (negative: ahead) at the start; f is moved so that up to half an item of it is made
    up for at once at each node. After p < 2^53 items for which p w is whole for all domains, the counts are p w, whatever
    was owed. Besides the bound, counts are off by less than p 2^-62 per level of the tree.
    """

    def __init__(self, whole_K: Sequence[int], owed_K: Sequence[float] | None = None) -> None:
        self._num_domains = len(whole_K)
        self._code_k = [code for code, whole in enumerate(whole_K) if whole]
        weight_N = [whole_K[code] for code in self._code_k]
        owed_N = [owed_K[code] if owed_K is not None else 0.0 for code in self._code_k]
        self._share_k = np.array([weight / sum(weight_N) for weight in weight_N])
        self._pairs = _best_pairs(self._share_k)
        # a leaf gives all to its left child, itself: walks of different lengths then take the same steps
        self._share, self._phase = [_ONE] * len(weight_N), [0] * len(weight_N)
        for left, right in self._pairs:
            weight, owed = weight_N[left] + weight_N[right], owed_N[left] + owed_N[right]
            phase = 0.5 + owed_N[left] - weight_N[left] / weight * owed
            self._share.append(weight_N[left] * _ONE // weight)
            self._phase.append(int(math.ldexp(min(max(phase, _EDGE), 1 - _EDGE), _BITS)))
            weight_N.append(weight)
            owed_N.append(owed)
        self._set_arrays()

    def _set_arrays(self) -> None:
        leaves = list(range(len(self._code_k)))
        self._left_N = np.array(leaves + [left for left, _ in self._pairs], dtype=np.intp)
        self._right_N = np.array(leaves + [right for _, right in self._pairs], dtype=np.intp)
        self._share_N = np.array(self._share, dtype=np.uint64)
        self._phase_N = np.array(self._phase, dtype=np.uint64)
        self._domain_N = np.array(self._code_k, dtype=np.int32)
        depth = [0] * len(self._share)
        for node, (left, right) in enumerate(self._pairs, start=len(leaves)):
            depth[node] = 1 + max(depth[left], depth[right])
        self._depth = depth[-1]

    @property
    def bound_K(self) -> np.ndarray:
        """The module's bound, (K,) items, of an order that starts with nothing owed; 0 for a domain of weight 0."""
        bound_K = np.zeros(self._num_domains)
        bound_K[self._code_k] = _bounds(self._share_k, self._pairs)
        return bound_K

    def at(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The domain at each position, (B,) int32, and how many of that domain are before it, (B,) int64."""
        count_B = position_B.astype(np.int64)
        node_B = np.full(len(count_B), len(self._share) - 1, dtype=np.intp)
        for _ in range(self._depth):
            share_B = self._share_N[node_B]
            before_B, rest_B = _times(count_B.astype(np.uint64), share_B, self._phase_N[node_B])
            is_left_B = rest_B + share_B >= np.uint64(_ONE)  # with one item more, the left child has one more
            count_B = np.where(is_left_B, before_B, count_B - before_B)
            node_B = np.where(is_left_B, self._left_N[node_B], self._right_N[node_B])
        return self._domain_N[node_B], count_B

    def counts(self, num_items: int) -> np.ndarray:
        """How many of each domain are among the first `num_items`, (K,) int64."""
        first = len(self._code_k)
        count_N = [0] * len(self._share)
        count_N[-1] = int(num_items)
        for node in range(len(self._share) - 1, first - 1, -1):
            left, right = self._pairs[node - first]
            items = count_N[node]
            count_N[left] = (items * self._share[node] + self._phase[node]) >> _BITS
            count_N[right] = items - count_N[left]
        count_K = np.zeros(self._num_domains, dtype=np.int64)
        count_K[self._code_k] = count_N[:first]
        return count_K


def _times(count_B: np.ndarray, share_B: np.ndarray, phase_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quotient (int64) and remainder (uint64) of count * share + phase by 2^62, from products of 31-bit halves."""
    high_B, low_B = count_B >> _HALF_BITS, count_B & _LOW
    share_high_B, share_low_B = share_B >> _HALF_BITS, share_B & _LOW
    middle_B = high_B * share_low_B + low_B * share_high_B
    rest_B = ((middle_B & _LOW) << _HALF_BITS) + low_B * share_low_B + phase_B  # three terms below 2^62
    whole_B = high_B * share_high_B + (middle_B >> _HALF_BITS) + (rest_B >> np.uint64(_BITS))
    return whole_B.astype(np.int64), rest_B & np.uint64(_ONE - 1)


def _best_pairs(share_k: np.ndarray) -> list[tuple[int, int]]:
    """Nodes to join, in order, new ones numbered on: for a bound of one item at most, else the smallest one found."""
    found: list[tuple[float, list[tuple[int, int]]]] = []
    for goal in _GOALS:
        pairs = _pairs(share_k, goal)
        found.append((float(_bounds(share_k, pairs).max()), pairs))
        if found[-1][0] <= 1:
            break
    return min(found, key=lambda bound_and_pairs: bound_and_pairs[0])[1]


def _pairs(share_k: np.ndarray, goal: float) -> list[tuple[int, int]]:
    """Nodes to join so that w * (sum of 1 / W_u) stays below `goal` where possible: those whose union leaves most room.

    The room of a node is what the ancestors above it may still add up to, the least of its leaves' goal / w - sum 1 / W_u.
    With up to four domains and goal 2 some room is always left: of two leaves joined there is 1/w - 1/(w + v) > 0.
    """
    weight_k, room_k, node_k = share_k.copy(), (goal - 1) / share_k, list(range(len(share_k)))
    pairs: list[tuple[int, int]] = []
    union_kk = np.minimum(room_k[:, None], room_k) - 1 / (weight_k[:, None] + weight_k)
    np.fill_diagonal(union_kk, -np.inf)
    while len(pairs) < len(share_k) - 2:
        kept, gone = (int(place) for place in np.unravel_index(union_kk.argmax(), union_kk.shape))
        pairs.append((node_k[kept], node_k[gone]))
        node_k[kept] = len(share_k) + len(pairs) - 1
        room_k[kept], room_k[gone] = union_kk[kept, gone], -np.inf
        weight_k[kept] += weight_k[gone]
        union_k = np.minimum(room_k, room_k[kept]) - 1 / (weight_k + weight_k[kept])
        union_k[kept] = -np.inf
        union_kk[kept], union_kk[:, kept] = union_k, union_k
        union_kk[gone], union_kk[:, gone] = -np.inf, -np.inf
    last = [node for node, room in zip(node_k, room_k.tolist(), strict=True) if room > -np.inf]
    return [*pairs, (last[0], last[1])] if len(last) == 2 else pairs


def _bounds(share_k: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """The module's bound for each leaf, (k,); 0 for a single one, which gets every item."""
    num = len(share_k)
    weight_N = share_k.tolist()
    for left, right in pairs:
        weight_N.append(weight_N[left] + weight_N[right])
    sum_N = [0.0] * len(weight_N)
    for node in range(len(weight_N) - 1, num - 1, -1):
        for child in pairs[node - num]:
            sum_N[child] = sum_N[node] + 1 / weight_N[child]
    return np.asarray(share_k * np.array(sum_N[:num]) / 2)
