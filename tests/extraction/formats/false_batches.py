"""Pickles that no writer of batches writes: damaged, of another kind, or nearly right."""

import pickle

from tests.extraction.formats.pickle_parts import (
    EMPTY_ARRAY,
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


def false_batches() -> dict[str, bytes]:
    """Name to file; all are `CorruptBatchError`."""
    return {**false_files(), **false_records(), **false_activations()}


def false_files() -> dict[str, bytes]:
    good = good_batch()
    one = record(more=steps())
    layer, rows = text("layer") + b"K\6", text("activations")
    nothing = {
        f"nothing to {verb}": START + code + b"."
        for verb, code in {
            **{"call": b"R", "append": b"a", "append many": b"e", "fill": b"u", "build": b"b"},
            **{"wrap": b"\x85", "remember": b"q\0", "mark off": b"t", "fetch": b"h\0"},
        }.items()
    }
    return {
        **nothing,
        "empty": b"",
        "one byte": b"\x80",
        "protocol alone": b"\x80\x03",
        "protocol 0": pickle.dumps({"layer": 6, "activations": []}, protocol=0),
        "protocol 1": pickle.dumps({"layer": 6, "activations": []}, protocol=1),
        "protocol 6": b"\x80\x06" + good[2:],
        "protocol 255": b"\x80\xff" + good[2:],
        "a text file": b"Hello, world\n",
        "stop": START + b".",
        "no stop": good[:-1],
        "two stops": good + b".",
        "a second pickle": good + good,
        "a newline behind": good + b"\n",
        "something below": START + b"N" + good[2:],
        "something on top": good[:-1] + b"N.",
        "a batch on top of another": good[:-1] + good[2:],
        "a frame beyond the end": START + b"\x95" + bytes(7) + b"\1" + good[2:],
        "an entry out of order": START + b"}q\5" + good[3:],
        "an entry given twice": START + b"}q\0q\0" + good[3:],
        "a fetched entry that is none": START + b"}q\0" + good[3:-2] + b"h\1u.",
        "an open mark": START + b"(" + good[2:],
        "items from below a mark": START + b"NN(\x86t.",
        "an entry far beyond": START + b"j\xff\xff\xff\xff.",
        "a list": START + b"](" + one + b"e.",
        "a record alone": START + one + b".",
        "an array alone": START + array() + b".",
        "an empty dictionary": START + b"}.",
        "a document with more": START + b"}(" + layer + rows + b"]" + text("more") + b"Nu.",
        "a document without a layer": START + b"}(" + rows + b"]u.",
        "a document in itself": START + b"}q\0(" + layer + rows + b"h\0u.",
        "a layer below 0": document(one, layer=b"J\xff\xff\xff\xff"),
        "a layer beyond 64 bits": document(one, layer=long_number(1 << 70, 9)),
        "a layer that is none": document(one, layer=b"N"),
        "a layer that is true": document(one, layer=b"\x88"),
        "a layer that is an array": document(one, layer=array()),
        "activations in a tuple": document(rows=b"(" + one + b"t"),
        "activations in an array": document(rows=array()),
        "activations in themselves": document(rows=b"]q\0h\0a"),
    }


def false_records() -> dict[str, bytes]:
    one = record(more=steps())
    width_1 = record(activation=array(b"K\x01\x85", content(bytes(4))), more=steps())
    half = record(activation=array(b"K\x04\x85", kind=dtype(text("f2"))), more=steps())
    return {
        "a number among the records": document(one, b"K\1"),
        "a text among the records": document(one, text("a")),
        "an empty record": document(one, b"}"),
        "a record twice": document(one + b"q\0", b"h\0"),
        "a record in itself": document(b"}q\0(" + text("task_id") + b"h\0u"),
        "a record filled twice": document(one + one[1:]),
        "a key too few": document(b"}(" + text("task_id") + text("a") + b"u"),
        "a key too many": with_record(more=steps() + text("more") + b"K\0"),
        "step alone": with_record(more=text("step") + b"K\0"),
        "a key twice": with_record(more=text("task_id") + text("b")),
        "a key instead of another": document(one.replace(b"task_id", b"task_no")),
        "a key that is a number": document(b"}(K\1K\2u"),
        "a key that is bytes": document(b"}(C\7task_id" + text("a") + b"u"),
        "a key that is a tuple": document(b"}(K\1\x85" + text("a") + b"u"),
        "a key without a value": document(b"}(" + text("task_id") + b"u"),
        "records with and without steps": document(one, record()),
        "a task id that is a number": with_record(task=b"K\1"),
        "a task id that is bytes": with_record(task=content(b"abc")),
        "a task id that is a tuple": with_record(task=b"K\1\x85"),
        "a task id that is not UTF-8": with_record(task=b"X\2\0\0\0\xc3\x28"),
        "a task id that is half a surrogate pair": with_record(task=text("\ud83e")),
        "a sample index that is text": with_record(sample=text("0")),
        "a sample index that is true": with_record(sample=b"\x88"),
        "a sample index that is none": with_record(sample=b"N"),
        "a sample index beyond 64 bits": with_record(sample=long_number(1 << 70, 9)),
        "a step beyond 32 bits": with_record(more=steps(long_number(1 << 32, 5))),
        "a position beyond 32 bits": with_record(more=steps(position=long_number(1 << 31, 5))),
        "a token id beyond 32 bits": with_record(more=steps(token=long_number(1 << 63, 8))),
        "a timestamp that is a number": with_record(time=b"K\1"),
        "an activation that is none": with_record(activation=b"N"),
        "an activation that is bytes": with_record(activation=content(bytes(8))),
        "an activation that is a dtype": with_record(activation=dtype()),
        "shapes that fit their bytes only together": document(
            record(activation=array(payload=content(bytes(4))), more=steps()),
            record(activation=array(payload=content(bytes(12))), more=steps()),
        ),
        "widths that differ": document(one, width_1),
        "dtypes that differ": document(one, half),
        "widths that differ after many": document(*[one] * 50, width_1, *[one] * 50),
    }


def false_activations() -> dict[str, bytes]:
    bare = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"
    encoded = name("_codecs", "encode") + text("12345678") + text("utf-8") + b"\x86R"
    from_buffer = name("numpy.core.numeric", "_frombuffer") + b"(" + content(bytes(8)) + dtype()
    return {
        "no content": with_record(activation=EMPTY_ARRAY),
        "content given twice": with_record(activation=array() + array()[len(EMPTY_ARRAY) :]),
        "two axes": with_activation(b"K\1K\2\x86"),
        "no axis": with_activation(b"(t"),
        "no values": with_activation(b"K\0\x85", content(b"")),
        "a negative shape": with_activation(b"J\xfe\xff\xff\xff\x85"),
        "a true shape": with_activation(b"\x88\x85", content(bytes(4))),
        "a shape that is text": with_activation(text("ab") + b"\x85"),
        "a shape that is a number": with_activation(b"K\2"),
        "a shape larger than its bytes": with_activation(b"K\3\x85"),
        "a shape smaller than its bytes": with_activation(b"K\1\x85"),
        "bytes that are text": with_activation(payload=text("12345678")),
        "bytes that are a text in another encoding": with_activation(payload=encoded),
        "bytes that are a list": with_activation(payload=b"]"),
        "bytes that are an array": with_activation(payload=array()),
        "Fortran order": with_activation(fortran=b"\x88"),
        "another version": with_activation(version=b"K\2"),
        "a state with more": with_activation(version=b"K\1K\1"),
        "big-endian": with_activation(kind=dtype(order=">")),
        "native order": with_activation(kind=dtype(order="=")),
        "a buffer in Fortran order": with_record(
            activation=from_buffer + b"K\2\x85" + text("F") + b"tR"
        ),
        "an aligned dtype": with_activation(
            kind=dtype().replace(b"\x89\x88\x87R", b"\x88" * 2 + b"\x87R")
        ),
        "a dtype without its state": with_activation(kind=bare),
        "a dtype with its state twice": with_activation(kind=dtype() + dtype()[len(bare) :]),
        "a dtype that is text": with_activation(kind=text("f4")),
        "a dtype with fields": with_activation(kind=dtype(fields=b"NN}")),
        "an object dtype": with_activation(kind=dtype(text("O8"), "|")),
        "a structured dtype": with_activation(kind=dtype(text("V8"), "|")),
        "an integer dtype": with_activation(kind=dtype(text("i4"))),
        "a date dtype": with_activation(kind=dtype(text("M8"))),
        "a long double": with_activation(kind=dtype(text("f16"))),
        "a dtype that is a number": with_activation(kind=dtype(b"K\4")),
    }
