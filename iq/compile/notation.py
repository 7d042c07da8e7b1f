"""The templates' notation: expressions, calls and vectors on one line, written out as plain MLIR after Jinja has rendered a template.

    %at = (%block + 32 * (%k / 64) + 16) : index      an expression; its type says in which arithmetic
    %scale, %min = @load_scale(%w, %block, %k + 32)   a call; operands may be expressions, their types are the callee's
    %quants = [%low, %high] : !quants                 a vector of scalars, or of equal vectors
    vector.load %xq[%m, %at / 32] align 16 : ...      loads and stores: expressions as indices, and an alignment
    !tile = memref<64x40xf16>                         inside a `builtin.module`: a type that only this one knows by that name

In expressions `+ - * / mod & | ^ << >>` and comparisons bind as in Python, and numbers take the expression's type. Integers are unsigned:
`/` is divui, `mod` remui, `>>` shrui, `<` ult, `min` minui. Functions: i32(index), index(i32), splat(scalar), rows(vector) of a matrix that
are all equal, sitofp(x) and uitofp(x) of an i32 expression of the same shape, asr(x, bits), fma(a, b, c), min(a, b), max(a, b), the signed
smin(a, b) and smax(a, b), abs(x), select(condition, a, b), of
vectors element by element where the condition is a comparison. Floats compare as in C: with a NaN all but != are false.
Nothing is inferred but the callee's signature. An expression stays as a comment above its operations; every other line is left as it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

_NAME = r"%[\w.]+(?:#\d+)?"
# What starts a line of the notation. Such a line goes on while a bracket is open, and a function's first line until its brace.
_STARTS = re.compile(r"\s*(?:%[\w.]+ = [(\[]|(?:%[\w.]+(?:, %[\w.]+)* = )?@\w+\(|func\.func private @)")
_EXPRESSION = re.compile(r"(%[\w.]+) = \((.*)\) : (\S.*)")
_VECTOR = re.compile(r"(%[\w.]+) = \[(.*)\] : (\S.*)")
_CALL = re.compile(r"(?:((?:%[\w.]+, )*%[\w.]+) = )?@(\w+)\((.*)\)")
_ACCESS = re.compile(r"(?:(%[\w.]+) = )?((?:vector|memref)\.(?:load|store)) (?:(%[\w.#]+), )?(%[\w.#]+)\[(.*)\](?: align (\d+))? : (.*)")
_FUNCTION = re.compile(r"\s*func\.func private @(\w+)\(([^()]*)\)(?: -> (.*?))? \{")
_ALIAS = re.compile(r"\s+(!\w+)\s*= (\S.*?)(?:\s+//.*)?")
_MODULE = re.compile(r"\s*builtin\.module \{")

_ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "rem"}  # `mod` is parsed as @
_BITS = {ast.BitAnd: "andi", ast.BitOr: "ori", ast.BitXor: "xori", ast.LShift: "shli", ast.RShift: "shrui"}
_COMPARISONS = {ast.Lt: "ult", ast.LtE: "ule", ast.Gt: "ugt", ast.GtE: "uge", ast.Eq: "eq", ast.NotEq: "ne"}
# By name, number of operands and whether they are floats.
_FUNCTIONS = {("asr", 2, False): "arith.shrsi", ("fma", 3, True): "math.fma", ("abs", 1, True): "math.absf"}
_FUNCTIONS |= {("smin", 2, False): "arith.minsi", ("smax", 2, False): "arith.maxsi"}
_FUNCTIONS |= {(name, 2, real): f"arith.{name}{'numf' if real else 'ui'}" for name in ("min", "max") for real in (False, True)}
_FUNCTIONS |= {("select", 3, real): "arith.select" for real in (False, True)}
_TYPES, _OPERANDS = "([{<>}])", "([{}])"  # brackets; in operands, < and > compare


class NotationError(ValueError):
    """A line that starts like the notation and is none. text: what was to be expanded. line: the number of the line, from 1."""

    def __init__(self, message: str, text: str, line: int) -> None:
        super().__init__(message)
        self.text, self.line = text, line


def expand(text: str) -> str:
    """The MLIR that a rendered template stands for. Raises NotationError for the first malformed line."""
    lines = list(_joined(text))
    aliases: dict[str, str] = {}  # all types, by names that are unique in the text
    scopes = [_Scope(aliases)]
    for _, line in lines:  # types and functions may be used above their definition
        if _MODULE.fullmatch(line):
            scopes.append(_Scope(aliases))
        scopes[-1].declare(line)
    scope, *waiting = scopes
    out: list[str] = []
    for number, line in lines:
        if _MODULE.fullmatch(line):
            scope = waiting.pop(0)
        try:
            out += scope.expand(line)
        except (SyntaxError, KeyError, ValueError) as error:
            reason = f"no function @{error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise NotationError(reason, text, number) from error
    head = next((i for i, line in enumerate(out) if line and not line.startswith("//")), len(out))
    return "\n".join([*out[:head], *(f"{name} = {type}" for name, type in aliases.items()), "", *out[head:]]) + "\n"


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; those of the notation that go on below are made one."""
    whole, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        whole, first = (f"{whole} {line.strip()}", first) if whole else (line, number)
        depth = sum(whole.count(c) for c in "([") - sum(whole.count(c) for c in ")]")
        if not _STARTS.match(whole) or (depth <= 0 and (whole.endswith("{") or "func.func " not in whole)):
            yield first, whole
            whole = ""
    if whole:  # a bracket that is never closed
        yield first, whole


def _split(text: str, brackets: str) -> list[str]:
    """The parts between commas that stand outside of brackets."""
    opening, closing = brackets[: len(brackets) // 2], brackets[len(brackets) // 2 :]
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in opening) - (c in closing)
        if c == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []


class _Scope:
    """The lines of a `builtin.module`, or those outside of any: the functions and types that they know."""

    def __init__(self, aliases: dict[str, str]) -> None:
        self.aliases = aliases
        self._names: dict[str, str] = {}
        self._functions: dict[str, tuple[list[str], list[str]]] = {}
        self._made = 0

    def declare(self, line: str) -> None:
        """Take note of a line that names a type or a function."""
        if found := _FUNCTION.fullmatch(line):
            arguments = [argument.partition(": ")[2] for argument in _split(found[2], _TYPES)]
            self._functions[found[1]] = arguments, _split((found[3] or "").removeprefix("(").removesuffix(")"), _TYPES)
        elif found := _ALIAS.fullmatch(line):
            name, n = found[1], 1
            while self.aliases.get(name, found[2]) != found[2]:  # another scope's, and another type
                n += 1
                name = f"{found[1]}_{n}"
            self.aliases[name] = found[2]
            self._names[found[1]] = name

    def expand(self, line: str) -> list[str]:
        """What a line stands for."""
        indent, body = line[: len(line) - len(line.lstrip())], line.strip()
        if _ALIAS.fullmatch(line):
            return []
        if body.startswith("func.func "):
            self._made = 0
        if found := _EXPRESSION.fullmatch(body):
            out = [f"// {body}", *self.expression(found[1], found[2], found[3])]
        elif found := _VECTOR.fullmatch(body):
            out = self._vector(found[1], _split(found[2], _OPERANDS), found[3])
        elif found := _CALL.fullmatch(body):
            out = self._call(found[1] or "", found[2], _split(found[3], _OPERANDS))
        elif found := _ACCESS.fullmatch(body):
            out = self._access(found)
        elif _STARTS.match(line) and not body.startswith("func.func "):
            raise ValueError("expected `= (expression) : type`, `= [parts] : type` or `= @function(operands)`")
        else:
            out = [body]
        return [indent + re.sub(r"!\w+\b", lambda m: self._names.get(m[0], m[0]), s) if s else s for s in out]

    def type(self, name: str) -> str:
        """A type with its alias resolved."""
        return self.aliases.get(self._names.get(name, name), name)

    def temporary(self, stem: str) -> str:
        self._made += 1
        return f"{stem}.{self._made}"

    def expression(self, name: str, text: str, type: str) -> list[str]:
        """The operations that make `name` the value of an expression."""
        names = list(dict.fromkeys(re.findall(_NAME, text)))  # Python parses them as v0, v1, ...
        source = re.sub(_NAME, lambda found: f"v{names.index(found[0])}", text)
        tree = ast.parse(re.sub(r"\bmod\b", "@", source).strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            raise ValueError(f"({text}) is only another name")
        out: list[str] = []
        _Writer(self, name, {f"v{i}": value for i, value in enumerate(names)}, out).value(tree, type, name)
        return out

    def _call(self, results: str, callee: str, operands: list[str]) -> list[str]:
        types, returned = self._functions[callee]
        before, names = self._operands(operands, types, results.split(",")[0] or f"%{callee}", f"@{callee}({', '.join(operands)})")
        into = returned[0] if len(returned) == 1 else f"({', '.join(returned)})"
        return [*before, f"{f'{results} = ' if results else ''}func.call @{callee}({', '.join(names)}) : ({', '.join(types)}) -> {into}"]

    def _access(self, found: re.Match[str]) -> list[str]:
        result, operation, stored, base, indices, align, types = found.groups()
        before, names = self._operands(parts := _split(indices, _OPERANDS), ["index"] * len(parts), result or stored, f"{base}[{indices}]")
        assign = f"{result} = " if result else ""
        if align is None:
            return [*before, f"{assign}{operation} {f'{stored}, ' if stored else ''}{base}[{', '.join(names)}] : {types}"]
        # The pretty form of these operations takes no alignment.
        buffer, vector = _split(types, _TYPES)
        sources = ", ".join([*([stored] if stored else []), base, *names])
        of = ", ".join([*([vector] if stored else []), buffer, *["index"] * len(names)])
        return [*before, f'{assign}"{operation}"({sources}) <{{alignment = {align} : i64}}> : ({of}) -> {"()" if stored else vector}']

    def _vector(self, name: str, parts: list[str], type: str) -> list[str]:
        shape = re.fullmatch(r"vector<(\d+)x(.*)>", self.type(type))
        if shape is None or int(shape[1]) != len(parts):
            raise ValueError(f"{len(parts)} parts do not make a {self.type(type)}")
        part = f"vector<{shape[2]}>" if "x" in shape[2] else shape[2]
        before, names = self._operands(parts, [part] * len(parts), name, f"[{', '.join(parts)}]")
        if part == shape[2]:
            return [*before, f"{name} = vector.from_elements {', '.join(names)} : {type}"]
        steps = [*(self.temporary(name) for _ in parts), name]
        inserts = [f"{steps[i + 1]} = vector.insert {value}, {steps[i]}[{i}] : {part} into {type}" for i, value in enumerate(names)]
        return [*before, f"{steps[0]} = ub.poison : {type}", *inserts]

    def _operands(self, texts: list[str], types: list[str], stem: str, comment: str) -> tuple[list[str], list[str]]:
        """What stands before an operation with these operands, and the operands' names."""
        if len(texts) != len(types):
            raise ValueError(f"{len(texts)} operands for {len(types)} parameters")
        names = [text if re.fullmatch(_NAME, text) else self.temporary(stem) for text in texts]
        pairs = zip(names, texts, types, strict=True)
        before = [line for name, text, of in pairs if name != text for line in self.expression(name, text, of)]
        return [f"// {comment}", *before] if before else [], names


class _Writer:
    """Writes an expression's operations, innermost first. values: the SSA values that its names stand for."""

    def __init__(self, scope: _Scope, name: str, values: dict[str, str], out: list[str]) -> None:
        self._scope, self._stem, self._values, self._out = scope, re.sub(r"\.\d+$", "", name), values, out

    def value(self, tree: ast.expr, of: str, name: str = "") -> str:
        """The name of an expression's value, of type `of`."""
        if isinstance(tree, ast.Name):
            return self._values[tree.id]
        operation = self._operation(tree, of)
        self._out.append(f"{name or (name := self._scope.temporary(self._stem))} = {operation}")
        return name

    def _operation(self, tree: ast.expr, of: str) -> str:
        type = self._scope.type(of)
        real = re.search(r"(?:^|x)b?f\d+", type) is not None

        def operands(*trees: ast.expr) -> str:
            return ", ".join(self.value(operand, of) for operand in trees)

        match tree:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return self._operation(ast.Constant(-number), of)
            case ast.Constant(value=int() | float() as number):
                # MLIR wants a point in what has an exponent.
                literal = re.sub(r"^(-?\d+)e", r"\1.0e", repr(float(number))) if real else hex(int(number)) if number > 255 else str(number)
                return f"arith.constant {f'dense<{literal}>' if type.startswith('vector') else literal} : {of}"
            case ast.UnaryOp(op=ast.USub(), operand=operand) if real:
                return f"arith.negf {operands(operand)} : {of}"
            case ast.BinOp(left=left, op=op, right=right) if op.__class__ in _BITS and not real:
                return f"arith.{_BITS[op.__class__]} {operands(left, right)} : {of}"
            case ast.BinOp(left=left, op=op, right=right) if op.__class__ in _ARITHMETIC:
                kind = "f" if real else "ui" if isinstance(op, (ast.Div, ast.MatMult)) else "i"
                return f"arith.{_ARITHMETIC[op.__class__]}{kind} {operands(left, right)} : {of}"
            case ast.Compare(left=left, ops=[op], comparators=[right]) if op.__class__ in _COMPARISONS:
                unsigned = _COMPARISONS[op.__class__]
                ordered = {"eq": "oeq", "ne": "une"}.get(unsigned, unsigned.replace("u", "o"))
                return f"arith.{f'cmpf {ordered}' if real else f'cmpi {unsigned}'}, {operands(left, right)} : {of}"
            case ast.BoolOp(op=op, values=[left, right]):
                return f"arith.{'andi' if isinstance(op, ast.And) else 'ori'} {operands(left, right)} : i1"
            case ast.Call(func=ast.Name(id="i32" | "index" as to), args=[x]):
                source = "index" if to == "i32" else "i32"
                return f"arith.index_castui {self.value(x, source)} : {source} to {to}"
            case ast.Call(func=ast.Name(id="splat"), args=[x]):
                element = type.removesuffix(">").rpartition("x")[2]
                return f"vector.broadcast {self.value(x, element)} : {element} to {of}"
            case ast.Call(func=ast.Name(id="select"), args=[ast.Compare() as test, a, b]) if type.startswith("vector"):
                flags = f"{type.rpartition('x')[0]}xi1>"
                return f"arith.select {self.value(test, of)}, {operands(a, b)} : {flags}, {of}"
            case ast.Call(func=ast.Name(id="rows"), args=[x]) if found := re.fullmatch(r"vector<\d+x(\d+x.*)>", type):
                return f"vector.broadcast {self.value(x, row := f'vector<{found[1]}>')} : {row} to {of}"
            case ast.Call(func=ast.Name(id="sitofp" | "uitofp" as function), args=[x]) if real:
                integer = re.sub(r"b?f\d+(?=>?$)", "i32", type)
                return f"arith.{function} {self.value(x, integer)} : {integer} to {of}"
            case ast.Call(func=ast.Name(id=function), args=arguments) if (function, len(arguments), real) in _FUNCTIONS:
                return f"{_FUNCTIONS[function, len(arguments), real]} {operands(*arguments)} : {of}"
        raise ValueError(f"`{ast.unparse(tree)}` is nothing over {type}")
