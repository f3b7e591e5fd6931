"""Pickles that want to run something, or to exhaust something.

`code_cases(canary)` would make the file `canary`; those named in `FIRE` do so under plain
`pickle.load`, which a test shows, so a quiet canary means something.
"""

import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np

from tests.extraction.formats.pickle_parts import (
    EMPTY_ARRAY,
    RECONSTRUCT,
    START,
    array,
    content,
    document,
    dtype,
    good_batch,
    long_number,
    name,
    record,
    steps,
    text,
    with_activation,
    with_record,
)

MILLION = 1_000_000
NUMPYS = {"runstring of numpy.testing", "myeval of numpy.f2py", "dotted STACK_GLOBAL"}
FIRE = NUMPYS | {
    *("os.system", "eval", "exec", "getattr of an import", "subprocess", "map", "nested loads"),
    *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "partial", "BUILD of a partial"),
    *("code before a batch", "code in a task id", "code in an activation", "code in a dtype"),
    *("code in an object array", "code in an array's state", "code in the 300th record"),
}


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def code_cases(canary: Path) -> dict[str, bytes]:
    """What runs something, or asks to."""
    touch = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w').close()"
    quoted = b"S" + repr(touch).encode() + b"\n"
    argument = text(python) + b"\x85R."
    system = name("os", "system") + text(touch) + b"\x85R"
    start_4 = b"\x80\x04"
    posix = text("os") + text("system") + b"\x93"
    partial = start_4 + text("functools") + text("partial") + b"\x93"
    module = name("importlib", "import_module") + text("os") + b"\x85R"
    objects = np.empty(1, object)
    objects[0] = Call(eval, python)
    many = [record(text(f"task {row}"), more=steps()) for row in range(299)]
    dotted = text("numpy") + text("testing._private.utils.os.system") + b"\x93"
    runstring = name("numpy.testing._private.utils", "runstring")
    scalar = name("numpy.core.multiarray", "scalar") + dtype() + content(bytes(4)) + b"\x86R."
    reconstructed_dtype = RECONSTRUCT + name("numpy", "dtype") + b"K\x00\x85C\x01b\x87R."
    fetched = name("builtins", "getattr") + module + text("system") + b"\x86R"
    return {
        "os.system": START + system + b".",
        "eval": START + name("builtins", "eval") + argument,
        "exec": START + name("builtins", "exec") + argument,
        "getattr of an import": START + fetched + text(touch) + b"\x85R.",
        "subprocess": pickle.dumps(Call(subprocess.call, ["touch", str(canary)])),
        "map": pickle.dumps(Call(list, Call(map, eval, [python]))),
        "nested loads": START
        + name("pickle", "loads")
        + content(START + system + b".")
        + b"\x85R.",
        "runstring of numpy.testing": START + runstring + text(python) + b"}\x86R.",
        "myeval of numpy.f2py": START + name("numpy.f2py.crackfortran", "myeval") + argument,
        "dotted STACK_GLOBAL": start_4 + dotted + text(touch) + b"\x85R.",
        "INST": b"(" + quoted + b"ios\nsystem\n.",
        "INST in protocol 3": START + b"(" + text(touch) + b"ios\nsystem\n.",
        "OBJ": b"(" + name("os", "system") + quoted + b"o.",
        "OBJ in protocol 3": START + b"(" + name("numpy", "dtype") + text("f4") + b"o.",
        "NEWOBJ": partial + posix + text(touch) + b"\x86\x81)R.",
        "NEWOBJ_EX": partial + posix + text(touch) + b"\x86}\x92)R.",
        "NEWOBJ of a good name": START + name("numpy", "ndarray") + b"K\x01\x85\x81.",
        "partial": partial + posix + text(touch) + b"\x86R)R.",
        "BUILD of a partial": partial + posix + b"\x85R(" + posix + text(touch) + b"\x85}Ntb)R.",
        "code before a batch": START + system + b"0" + good_batch()[2:],
        "code behind a batch": good_batch() + START + system + b".",
        "code in a task id": with_record(task=system),
        "code in an activation": with_record(activation=system),
        "code in a dtype": with_activation(kind=system),
        "code in an array's state": with_activation(payload=system),
        "code in an object array": pickle.dumps(objects, protocol=3),
        "code in the 300th record": document(*many, record(task=system), *many),
        "a name that is not called": with_record(task=name("os", "system")),
        "EXT1": START + b"\x82\x01" + argument,
        "EXT2": START + b"\x83\x01\x00" + argument,
        "EXT4": START + b"\x84\x01\x00\x00\x00" + argument,
        "PERSID": START + b"Phello\n.",
        "BINPERSID": START + text("hello") + b"Q.",
        "NEXT_BUFFER": b"\x80\x05\x97.",
        "READONLY_BUFFER": b"\x80\x05" + content(b"ab") + b"\x98.",
        "a dotted good name": START + name("numpy", "dtype.__init__.__objclass__") + b".",
        "globals of a good name": START + RECONSTRUCT[:-1] + b".__globals__\n.",
        "a good name elsewhere": START + name("os", "_reconstruct") + b".",
        "a good name with a space": START + name("numpy ", "dtype") + b".",
        "a good name in capitals": START + name("NumPy", "dtype") + b".",
        "numpy.load": START + name("numpy", "load") + text("/etc/passwd") + b"\x85R.",
        "a numpy scalar": START + scalar,
        "STACK_GLOBAL of numbers": start_4 + b"K\x01K\x02\x93.",
        "STACK_GLOBAL of names": start_4 + name("numpy", "dtype") * 2 + b"\x93.",
        "a stacked name of a million": start_4 + text("a" * MILLION) + text("b") + b"\x93.",
        "a call of a text": START + text("eval") + b"K\x01\x85R.",
        "a call of an array": START + EMPTY_ARRAY + b"K\x01\x85R.",
        "a call of a type": START + name("numpy", "ndarray") + b"K\x02\x85R.",
        "_reconstruct of a dtype": START + reconstructed_dtype,
        "a codec": START + name("_codecs", "encode") + text("abc") + text("zip") + b"\x86R.",
        "BUILD of a dictionary": START + b"}}b.",
        "BUILD of a name": START + name("numpy", "ndarray") + b"}b.",
        "BUILD of the list": START + b"]}b.",
        "BUILD of an array by a dictionary": START + EMPTY_ARRAY + b"}b.",
        "BUILD of an array by slots": START + EMPTY_ARRAY + b"N}\x86b.",
        "BUILD of a dtype by a dictionary": START + dtype() + b"}b.",
        **{
            f"opcode {code[:1]!r}": START + b"K\x01K\x02" + code + b"."
            for code in (
                *(b"1", b"2", b")", b"l", b"d", b"s", b"\x8f", b"\x90", b"\x91"),
                *(b"I5\n", b"L5L\n", b"F5\n", b"S'a'\n", b"Va\n", b"U\1a", b"g0\n", b"p0\n"),
                *(b"G" + bytes(8), b"\x8b" + bytes(4), b"\x8d" + bytes(8), b"\x8e" + bytes(8)),
                *(b"T" + bytes(4), b"\x80\x03", b"\x00", b"\xff"),
            )
        },
    }


DAMAGED = {  # refused as damage, not as a wish: the rest of `code_cases` is UnsafePickleError
    *("INST", "OBJ", "code behind a batch", "code in an object array", "a call of a type"),
    *("_reconstruct of a dtype", "a codec", "BUILD of an array by a dictionary"),
    *("BUILD of an array by slots", "BUILD of a dtype by a dictionary"),
}


def greedy_cases() -> dict[str, bytes]:
    """What asks for more memory, depth or time than its size is worth."""
    start_4, start_5 = b"\x80\x04", b"\x80\x05"
    far = long_number(10**12, 6) + b"\x85"
    wide = array(struct.pack("<cI", b"J", MILLION // 4) + b"\x85", content(bytes(MILLION)))
    encode = name("_codecs", "encode") + b"q\0" + text("a" * MILLION) + b"q\1"
    encode += text("latin1") + b"q\2"
    parts = RECONSTRUCT + b"q\0" + name("numpy", "ndarray") + b"q\1K\0\x85q\2C\1bq\3"
    again = b"](" + record(more=steps()) + b"q\0" + b"h\0" * 900 + b"e"
    laughs = b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(99))
    nearly = record(text("q\x05h\x06" * 60), more=steps())
    return {
        "LONG_BINPUT 2^31": START + b"Nr" + struct.pack("<I", 1 << 31) + b".",
        "LONG_BINPUT 2^32-1": START + b"Nr\xff\xff\xff\xff.",
        "BINPUT beyond the next": START + b"Nq\x05.",
        "BINPUT of an earlier entry": START + b"Nq\0Nq\0.",
        "BYTEARRAY8 2^34": start_5 + b"\x96" + struct.pack("<Q", 1 << 34) + b"abc.",
        "BYTEARRAY8 2^63": start_5 + b"\x96" + struct.pack("<Q", 1 << 63) + b"abc.",
        "BINBYTES 2^32-1": START + b"B\xff\xff\xff\xffabc.",
        "BINUNICODE 2^32-1": START + b"X\xff\xff\xff\xffabc.",
        "LONG1 of 255 bytes": START + b"\x8a\xff" + bytes(255) + b".",
        "FRAME 2^62": start_4 + b"\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        "_reconstruct of 10^12": START + EMPTY_ARRAY.replace(b"K\x00\x85", far) + b".",
        "a shape of 10^12": with_activation(far),
        "a shape of a thousand axes": with_activation(b"(" + b"K\x01" * 1000 + b"t"),
        "a million tuples deep": START + b"N" + b"\x85" * MILLION + b".",
        "a million tuples of a number deep": START + b"K\1" + b"\x85" * MILLION + b".",
        "a million pairs deep": START + b"N" + b"N\x86" * MILLION + b".",
        "a million pairs of numbers deep": START + b"K\1" + b"K\1\x86" * MILLION + b".",
        "a million lists deep": START + b"]" * MILLION + b"a" * (MILLION - 1) + b".",
        "a deep tuple as a key": START + b"}(N" + b"N\x86" * MILLION + b"Nu.",
        "a deep tuple as a field": START
        + b"}("
        + text("layer")
        + b"N"
        + b"N\x86" * MILLION
        + b"u.",
        "a million lists": START + b"]" * MILLION + b".",
        "a million dictionaries": START + b"}" * MILLION + b".",
        "a million dictionaries remembered": start_4 + b"}\x94" * MILLION + b".",
        "100,000 marks": START + b"(" * 100_000 + b".",
        "a million marked tuples": START + b"(t" * MILLION + b".",
        "a million nothings": START + b"N" * MILLION + b".",
        "a million numbers": START + b"M\xff\xff" * MILLION + b".",
        "100,000 entries": start_4 + b"N" + b"\x94" * 100_000 + b".",
        "a million fetches": START + b"Nq\0" + b"h\0" * MILLION + b".",
        "100,000 arrays": START + parts + b"h\0h\1h\2h\3\x87R" * 100_000 + b".",
        "10,000 frames": start_4 + (b"\x95" + bytes(8)) * 10_000 + b"N.",
        "laughs": START + b"]q\0" + laughs + b".",
        "one activation in 1500 records": document(
            record(activation=wide + b"q\0"), *[record(activation=b"h\0")] * 1500
        ),
        "one record 900 times": document(rows=again),
        "one text encoded 2000 times": START + encode + b"h\0h\1h\2\x86R" * 2000 + b".",
        "a name without an end": START + b"c" + b"a" * MILLION,
        "a name of a million": START + b"c" + b"a" * MILLION + b"\nb\n.",
        "a key of a million": START + b"}(" + text("k" * MILLION) + b"Nu.",
        "a text that nearly ends, 300 times": document(*[nearly] * 300)[:-9],
    }
