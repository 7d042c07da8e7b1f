"""The templates' notation: what each form is written out as, that all else passes through, and what malformed lines are refused with."""

import operator
import re
import subprocess
import textwrap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iq.compile import build
from iq.compile.build import Module, mlir_of
from iq.compile.compiler import Compiler
from iq.compile.notation import NotationError, expand
from iq.errors import CompileError
from iq.kernels import KernelSpec
from iq.targets import TARGETS


def expanded(text: str) -> list[str]:
    """What lines become, without indentation, comments and the empty lines at the head."""
    lines = [line.strip() for line in expand(textwrap.dedent(text)).splitlines()]
    return [line for line in lines if line and not line.startswith("//")]


def operations(line: str) -> list[str]:
    """The operations of an expression, temporaries renamed to their order."""
    names = {}
    return [re.sub(r"%x(?:\.\d+)?\b", lambda m: names.setdefault(m[0], f"%{len(names)}"), text) for text in expanded(line)]


def test_an_expression_is_one_operation_for_each_operator_and_number():
    assert operations("%x = (%block + 32 * (%k / 64) + 16) : index") == [
        "%0 = arith.constant 32 : index",
        "%1 = arith.constant 64 : index",
        "%2 = arith.divui %k, %1 : index",
        "%3 = arith.muli %0, %2 : index",
        "%4 = arith.addi %block, %3 : index",
        "%5 = arith.constant 16 : index",
        "%6 = arith.addi %4, %5 : index",
    ]


def test_the_expression_stays_as_a_comment():
    assert expand("  %x = (%a + 1) : index\n").splitlines()[-3:] == [
        "  // %x = (%a + 1) : index",
        "  %x.1 = arith.constant 1 : index",
        "  %x = arith.addi %a, %x.1 : index",
    ]


@pytest.mark.parametrize(
    ("expression", "type", "operation"),
    [
        ("%a - %b", "index", "arith.subi %a, %b : index"),
        ("%a / %b", "i32", "arith.divui %a, %b : i32"),
        ("%a mod %b", "i32", "arith.remui %a, %b : i32"),
        ("%a & %b", "i32", "arith.andi %a, %b : i32"),
        ("%a | %b", "i32", "arith.ori %a, %b : i32"),
        ("%a ^ %b", "i32", "arith.xori %a, %b : i32"),
        ("%a << %b", "i32", "arith.shli %a, %b : i32"),
        ("%a >> %b", "vector<4xi32>", "arith.shrui %a, %b : vector<4xi32>"),
        ("%a + %b", "f32", "arith.addf %a, %b : f32"),
        ("%a / %b", "vector<8xf16>", "arith.divf %a, %b : vector<8xf16>"),
        ("-%a", "f32", "arith.negf %a : f32"),
        ("%a < %b", "index", "arith.cmpi ult, %a, %b : index"),
        ("%a >= %b", "i32", "arith.cmpi uge, %a, %b : i32"),
        ("%a == %b", "i32", "arith.cmpi eq, %a, %b : i32"),
        ("%a and %b", "index", "arith.andi %a, %b : i1"),
        ("%a or %b", "index", "arith.ori %a, %b : i1"),
        ("i32(%a)", "i32", "arith.index_castui %a : index to i32"),
        ("index(%a)", "index", "arith.index_castui %a : i32 to index"),
        ("splat(%a)", "vector<8xf32>", "vector.broadcast %a : f32 to vector<8xf32>"),
        ("sitofp(%a)", "vector<8xf32>", "arith.sitofp %a : vector<8xi32> to vector<8xf32>"),
        ("uitofp(%a)", "f32", "arith.uitofp %a : i32 to f32"),
        ("asr(%a, %b)", "i32", "arith.shrsi %a, %b : i32"),
        ("fma(%a, %b, %c#1)", "f32", "math.fma %a, %b, %c#1 : f32"),
        ("min(%a, %b)", "index", "arith.minui %a, %b : index"),
        ("max(%a, %b)", "f32", "arith.maxnumf %a, %b : f32"),
        ("select(%c, %a, %b)", "i32", "arith.select %c, %a, %b : i32"),
        ("%a <= %b", "f32", "arith.cmpf ole, %a, %b : f32"),
        ("%a == %b", "vector<8xf32>", "arith.cmpf oeq, %a, %b : vector<8xf32>"),
        ("%a != %b", "f32", "arith.cmpf une, %a, %b : f32"),
        ("abs(%a)", "f32", "math.absf %a : f32"),
        ("smin(%a, %b)", "i32", "arith.minsi %a, %b : i32"),
        ("smax(%a, %b)", "vector<2xi32>", "arith.maxsi %a, %b : vector<2xi32>"),
        ("rows(%a)", "vector<4x8xf32>", "vector.broadcast %a : vector<8xf32> to vector<4x8xf32>"),
    ],
)
def test_operators_and_functions(expression, type, operation):
    assert operations(f"%x = ({expression}) : {type}") == [f"%0 = {operation}"]


def test_a_comparison_selects_element_by_element():
    lines = operations("%x = (select(%a > %b, %a, %b)) : vector<4x8xf32>")
    assert lines == [
        "%0 = arith.cmpf ogt, %a, %b : vector<4x8xf32>",
        "%1 = arith.select %0, %a, %b : vector<4x8xi1>, vector<4x8xf32>",
    ]


@pytest.mark.parametrize(
    ("number", "type", "constant"),
    [
        ("1e-15", "f32", "1.0e-15 : f32"),
        ("7", "index", "7 : index"),
        ("-4", "index", "-4 : index"),
        ("0x0F0F0F0F", "vector<2xi32>", "dense<0xf0f0f0f> : vector<2xi32>"),
        ("127", "f32", "127.0 : f32"),
        ("-0.5", "vector<8xf32>", "dense<-0.5> : vector<8xf32>"),
    ],
)
def test_numbers_take_the_type_of_the_expression(number, type, constant):
    assert operations(f"%x = (%a + ({number})) : {type}")[0] == f"%0 = arith.constant {constant}"


FUNCTIONS = """
func.func private @pair(%w: memref<?xi8>, %k: index) -> (f32, vector<2xi32>) {
func.func private @nothing(%k: index, %f: f32) {
"""


def test_a_call_takes_its_types_from_the_function_wherever_that_stands():
    lines = expanded(f"%a, %b = @pair(%w, 8 * %k)\n@nothing(%k, 1)\n{FUNCTIONS}")
    assert lines[:4] == [
        "%a.2 = arith.constant 8 : index",
        "%a.1 = arith.muli %a.2, %k : index",
        "%a, %b = func.call @pair(%w, %a.1) : (memref<?xi8>, index) -> (f32, vector<2xi32>)",
        "%nothing.3 = arith.constant 1.0 : f32",
    ]
    assert lines[4] == "func.call @nothing(%k, %nothing.3) : (index, f32) -> ()"


def test_a_vector_of_scalars_and_of_vectors():
    assert expanded("%v = [%a, %b] : vector<2xi32>") == ["%v = vector.from_elements %a, %b : vector<2xi32>"]
    assert expanded("%v = [%a, %b] : vector<2x8xf32>") == [
        "%v.1 = ub.poison : vector<2x8xf32>",
        "%v.2 = vector.insert %a, %v.1[0] : vector<8xf32> into vector<2x8xf32>",
        "%v = vector.insert %b, %v.2[1] : vector<8xf32> into vector<2x8xf32>",
    ]


def test_indices_and_alignment_of_loads_and_stores():
    assert expanded("%v = vector.load %x[%m, %k / 4] : !x, !v")[-1] == "%v = vector.load %x[%m, %v.1] : !x, !v"
    assert expanded("%v = vector.load %x[%m, %k] align 16 : !x, !v") == [
        '%v = "vector.load"(%x, %m, %k) <{alignment = 16 : i64}> : (!x, index, index) -> !v'
    ]
    assert expanded("vector.store %v, %x[%m] align 4 : !x, !v") == [
        '"vector.store"(%v, %x, %m) <{alignment = 4 : i64}> : (!v, !x, index) -> ()'
    ]
    assert expanded("memref.store %v, %x[0] : !x") == ["%v.1 = arith.constant 0 : index", "memref.store %v, %x[%v.1] : !x"]


def test_types_belong_to_their_module():
    text = """
    builtin.module {
      %a = [%x, %y] : !pair
      !pair = vector<2xf32>   // of this module
    }
    builtin.module {
      !pair = vector<2xi32>
      %a = [%x, %y] : !pair
    }
    """
    assert expanded(text) == [
        "!pair = vector<2xf32>",
        "!pair_2 = vector<2xi32>",
        "builtin.module {",
        "%a = vector.from_elements %x, %y : !pair",
        "}",
        "builtin.module {",
        "%a = vector.from_elements %x, %y : !pair_2",
        "}",
    ]


def test_functions_belong_to_their_module():
    text = "builtin.module {\n@f(1)\nfunc.func private @f(%x: i32) {\n}\nbuiltin.module {\n@f(1)\nfunc.func private @f(%x: f32) {\n}\n"
    assert [line.partition(" : ")[2] for line in expanded(text) if "call" in line] == ["(i32) -> ()", "(f32) -> ()"]


def test_lines_go_on_while_a_bracket_is_open():
    assert expanded("%v = [%a,\n    %b] : vector<2xi32>") == ["%v = vector.from_elements %a, %b : vector<2xi32>"]


@pytest.mark.parametrize(
    "line",
    [
        "%c0 = arith.constant 0 : index",
        '%v = "vector.load"(%x, %i) <{alignment = 16 : i64}> : (!x, index) -> !v',
        "%r:2 = scf.for %i = %a to %b step %c iter_args(%s = %z) -> (f32) {",
        "%a = flow.dispatch @k::@k[%n](%n_i32, %x) : (i32, tensor<?xi8>{%l}) -> tensor<?xf32>{%m}",
        "// %x = (a comment) : nothing",
        "func.func @kernel() attributes {translation_info = #x} {",
        "return %a, %b : !t, !t",
    ],
)
def test_all_else_passes_through(line):
    assert expand(f"    {line}\n").splitlines()[-1] == f"    {line}"


MALFORMED = {
    "%x = (%a + ) : index": "invalid syntax",
    "%x = (%a) : index": "only another name",
    "%x = (%a ** %b) : index": "is nothing over index",
    "%x = (%a & %b) : f32": "is nothing over f32",
    "%x = (fma(%a, %b)) : f32": "is nothing over f32",
    "%x = (%a + 1)": "expected",
    "%x = [%a, %b] : vector<3xf32>": "2 parts do not make",
    "%x = @unknown(%a)": "no function @unknown",
    "@nothing(%k)": "1 operands for 2 parameters",
    "%x = (%a + (1 : index": "expected",
}


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_refused(line):
    with pytest.raises(NotationError, match=re.escape(MALFORMED[line])) as error:
        expand(f"{FUNCTIONS}\n  {line}\n")
    assert error.value.text.splitlines()[error.value.line - 1].strip() == line


def test_a_malformed_template_is_a_compile_error_that_shows_the_line(monkeypatch):
    def broken(specs, target):
        return expand("%a = (1 + 2) : index\n  %b = (%a +) : index\n%c = (3 + 4) : index\n")

    monkeypatch.setattr(build, "render", broken)
    with pytest.raises(CompileError) as error:
        mlir_of(Module(TARGETS["gfx1100"], "q4_0", (KernelSpec.parse("mul_mat_vec.q4_0.1"),)))
    assert str(error.value).splitlines()[0] == "mul_mat_vec.q4_0.1 for gfx1100 does not render:"
    assert "2 |   %b = (%a +) : index\n  |   ^ error: invalid syntax" in str(error.value)


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_, "|": operator.or_, "^": operator.xor}
WORDS = {"%a": 0x1234567, "%b": 0xFEDCBA9}
# An expression, and its value in Python's integers.
EXPRESSIONS = st.recursive(
    st.sampled_from(list(WORDS.items())) | st.integers(0, 2**31 - 1).map(lambda n: (str(n), n)),
    lambda inner: st.tuples(inner, st.sampled_from(list(OPERATORS)), inner).map(
        lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", OPERATORS[t[1]](t[0][1], t[2][1]))
    ),
    max_leaves=12,
)


@given(EXPRESSIONS.filter(lambda e: e[0].startswith("(")))
def test_an_expression_means_what_python_means(expression):
    """Runs the operations one by one, in 32 bits."""
    text, want = expression
    names, arith = dict(WORDS), dict(zip(("addi", "subi", "muli", "andi", "ori", "xori"), OPERATORS.values(), strict=True))
    for line in expanded(f"%x = ({text}) : i32"):
        name, operation, operands = re.fullmatch(r"(%\S+) = arith\.(\w+) (.*) : i32", line).groups()
        if operation == "constant":
            names[name] = int(operands, 0)
        else:
            names[name] = arith[operation](*(names[o] for o in operands.split(", "))) & (2**32 - 1)
    assert names["%x"] == want & (2**32 - 1)


def test_every_rendered_module_is_plain_mlir(environment):
    """What `iq render` prints holds none of the notation; iree-opt would take it, as iree-compile does."""
    text = mlir_of(Module(TARGETS["gfx1100"], "q4_k", (KernelSpec.parse("mul_mat.q4_k.float"),)))
    code = [line.strip() for line in text.splitlines() if not line.strip().startswith("//")]
    assert not [line for line in code if re.match(r"(%[\w.]+ = [(\[]|(%[\w., ]+ = )?@)", line)]
    assert not [line for line, following in pairwise(code) if line == following == "return"]
    done = subprocess.run(
        [Compiler.find().executable, "-", "--compile-to=input", "-o", "/dev/null"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
