"""The formula of a multi grader: arithmetic over the sub-rewards, and nothing else.

sum      = product, any number of ("+" | "-") product
product  = unary, any number of ("*" | "/") unary
unary    = "-" unary | power
power    = atom, perhaps "^" exponent
exponent = "-" exponent | power
atom     = number | name | function "(" sum, any number of "," sum ")" | "(" sum ")"
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rft.errors import GraderError, Problem
from rft.graders.fault import GradingFault
from rft.graders.template import nearest

MAX_LENGTH = 2000
MAX_DEPTH = 50
TOKEN = re.compile(
    r"""(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<symbol>[-+*/^(),])""",
    re.VERBOSE,
)
FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
LEGAL_FORMS = "use the graders' keys, numbers, + - * / ^, parentheses and " + ", ".join(FUNCTIONS)

Node = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula."""

    text: str
    names: frozenset[str]
    """The keys it reads."""
    evaluate: Node

    def value(self, values: Mapping[str, float]) -> float:
        """The finite result; a result that does not exist is a fault of the sample."""
        try:
            return finite(self.evaluate(values))
        except (ArithmeticError, ValueError) as error:
            given = ", ".join(f"{name} = {values[name]:g}" for name in sorted(self.names))
            details = f"calculate_output {self.text!r} with {given or 'no values'}: {error}"
            raise GradingFault("other_error", details, of_sample=True) from None


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """`number`, `name`, `symbol` or `end`."""
    text: str
    column: int
    """From 1."""


class FormulaSyntaxError(Exception):
    """A formula cannot be read; caught in `parse_formula`."""

    def __init__(self, what: str, column: int, remedy: str = LEGAL_FORMS):
        super().__init__(what)
        self.problem = (f"{what} at column {column}", remedy)


def parse_formula(text: str, keys: Mapping[str, object], where: str) -> Formula:
    """The formula over the given keys; raises GraderError that names the column."""
    if len(text) > MAX_LENGTH:
        what = f"the formula has {len(text)} characters"
        raise GraderError(what, where=where, remedy=f"at most {MAX_LENGTH} are read")
    try:
        tokens = tokenise(text)
        parser = Parser(tokens)
        node = parser.sum(1)
        parser.expect_end()
    except FormulaSyntaxError as error:
        what, remedy = error.problem
        raise GraderError(f"{what} of {text!r}", where=where, remedy=remedy) from None
    unknown = [token for token in parser.names if token.text not in keys]
    if unknown:
        raise GraderError(unknown_name(token, keys, where) for token in unknown)
    return Formula(text, frozenset(token.text for token in parser.names), node)


def is_name(key: str) -> bool:
    """Whether a formula can call a grader by this key."""
    match = TOKEN.fullmatch(key)
    return match is not None and match.lastgroup == "name" and key not in FUNCTIONS


def unknown_name(token: Token, keys: Mapping[str, object], where: str) -> Problem:
    what = f"{token.text!r} at column {token.column} is not one of the graders"
    known = ", ".join(keys)
    return Problem(what, where, f"the keys are {known}{nearest(token.text, list(keys))}")


def tokenise(text: str) -> list[Token]:
    tokens = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = TOKEN.match(text, position)
        if match is None:
            raise FormulaSyntaxError(f"unexpected {text[position]!r}", position + 1)
        tokens.append(Token(str(match.lastgroup), match.group(), position + 1))
        position = match.end()
    return [*tokens, Token("end", "", len(text) + 1)]


class Parser:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, tokens: list[Token]):
        self._tokens = tokens
        self._next = 0
        self.names: list[Token] = []
        """The names read so far, functions left out."""

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            what = f"nested more than {MAX_DEPTH} deep"
            raise FormulaSyntaxError(what, self._peek.column, "write a flatter formula")
        terms = [(1.0, self._product(depth))]
        while operator := self._take("+", "-"):
            terms.append((1.0 if operator == "+" else -1.0, self._product(depth)))
        return sum_of(terms)

    def expect_end(self) -> None:
        if self._peek.kind != "end":
            raise self._unexpected()

    def _product(self, depth: int) -> Node:
        factors = [("*", self._unary(depth))]
        while operator := self._take("*", "/"):
            if self._peek.text == "*" and operator == "*":
                remedy = "the power of a to b is written a ^ b"
                raise FormulaSyntaxError("unexpected '**'", self._peek.column - 1, remedy)
            factors.append((operator, self._unary(depth)))
        return product_of(factors)

    def _unary(self, depth: int) -> Node:
        minuses = self._minuses()
        return negated(self._power(depth), minuses)

    def _power(self, depth: int) -> Node:
        bases = [(0, self._atom(depth))]
        while self._take("^"):
            minuses = self._minuses()
            bases.append((minuses, self._atom(depth)))
        return power_of(bases)

    def _minuses(self) -> int:
        count = 0
        while self._take("-"):
            count += 1
        return count

    def _atom(self, depth: int) -> Node:
        token = self._peek
        if token.kind == "number":
            self._next += 1
            return constant(token)
        if token.kind == "name":
            self._next += 1
            if self._take("("):
                return self._call(token, depth)
            self.names.append(token)
            return lambda values: values[token.text]
        if self._take("("):
            inner = self.sum(depth + 1)
            self._expect(")")
            return inner
        raise self._unexpected()

    def _call(self, function: Token, depth: int) -> Node:
        if function.text not in FUNCTIONS:
            raise FormulaSyntaxError(f"unknown function {function.text!r}", function.column)
        arguments = [self.sum(depth + 1)]
        while self._take(","):
            arguments.append(self.sum(depth + 1))
        self._expect(")")
        if len(arguments) > 1 and function.text not in ("min", "max"):
            what = f"{function.text} takes one value, not {len(arguments)},"
            raise FormulaSyntaxError(what, function.column)
        apply = FUNCTIONS[function.text]
        return lambda values: float(apply(*[argument(values) for argument in arguments]))

    @property
    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *symbols: str) -> str:
        """The next token's text if it is one of the symbols, else an empty string."""
        token = self._peek
        if token.kind != "symbol" or token.text not in symbols:
            return ""
        self._next += 1
        return token.text

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            raise self._unexpected(f", {symbol!r} is missing")

    def _unexpected(self, missing: str = "") -> FormulaSyntaxError:
        token = self._peek
        what = "unexpected end" if token.kind == "end" else f"unexpected {token.text!r}"
        return FormulaSyntaxError(what + missing, token.column)


def constant(token: Token) -> Node:
    value = float(token.text)
    if math.isinf(value):
        raise FormulaSyntaxError(f"{token.text} is too large a number", token.column)
    return lambda values: value


def sum_of(terms: list[tuple[float, Node]]) -> Node:
    """Terms with their signs, added from left to right."""
    if len(terms) == 1:
        return terms[0][1]

    def evaluate(values: Mapping[str, float]) -> float:
        total = terms[0][1](values)
        for sign, term in terms[1:]:
            total += sign * term(values)
        return finite(total)

    return evaluate


def product_of(factors: list[tuple[str, Node]]) -> Node:
    """Factors with the operator before each, from left to right."""
    if len(factors) == 1:
        return factors[0][1]

    def evaluate(values: Mapping[str, float]) -> float:
        result = factors[0][1](values)
        for operator, factor in factors[1:]:
            result = result * factor(values) if operator == "*" else result / factor(values)
        return finite(result)

    return evaluate


def power_of(bases: list[tuple[int, Node]]) -> Node:
    """a ^ b ^ c with the minus signs before each exponent, from right to left."""
    if len(bases) == 1:
        return bases[0][1]

    def evaluate(values: Mapping[str, float]) -> float:
        minuses, last = bases[-1]
        result = last(values)
        for next_minuses, base in reversed(bases[:-1]):
            result = math.pow(base(values), -result if minuses % 2 else result)
            minuses = next_minuses
        return result

    return evaluate


def negated(node: Node, minuses: int) -> Node:
    return (lambda values: -node(values)) if minuses % 2 else node


def finite(value: float) -> float:
    """The value; raises OverflowError for an infinity or NaN."""
    if not math.isfinite(value):
        raise OverflowError("the result is not a finite number")
    return value
