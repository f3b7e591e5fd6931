import base64
import contextlib
import pickle
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction.errors import CorruptBatchError
from extraction.formats import ParsedBatch
from extraction.formats.pickle_format import PickleFormat
from extraction.formats.pickle_machine import read_pickle
from extraction.formats.pickle_table import read_table
from extraction.formats.safe_pickle import _batch, parse_pickle
from extraction.run.rows import UNKNOWN, RowBlock, text_column
from tests.extraction.formats.batches import (
    HOOK,
    assert_same_keys,
    assert_well_formed,
    founding_document,
    founding_pickle,
    varied_block,
)
from tests.extraction.formats.pickle_parts import good_batch, text

PROTOCOLS = [None, 2, 3, 4, 5]

# `pickle.dump` of three records, as the founding document's code writes them.
WRITTEN = {
    "Python 3.8.18, numpy 1.24.4, default protocol": (
        "fCQDm0RR910001elqie^Y+-q2a+FI3j0<67bZK^BbZKvHbCg|_D1DSDj0bdKb8BB|WR#2vbYXLAUtwZnFqDi6b75_8Y-"
        "L|*WO$TI0E`M@V{~bDVRUJ4Zj_7_Zgp*Nc`jpba%C=Ub!>ELVRCX|d6bL{Uvgz*Z*FsRa&=>Ll#`T<1#We1aCwxB2X16"
        "xa&lpLl#`T80ELu80b-Pglv0!^O94v*g_LLvj0I$Ld2nTvla!1CW;B$Eh=-I?lqgFBi~&59PEJlr|NsC0O8@`=|4RULl"
        "wyfP3;+NC00000KL7v#0F-o;VvGrNX>Db5bYX39l#CNHFfuhQFflDLHB>P$Ix{djFff#LeUvC@1&j%FVRLI=VPa!2lxP"
        "P_0cZ$l3uq2Y0ELuj5QmgflqgF9O9O?JXc&n@3;+OtKL7y0KL7xLzm#;8VrU(V6EZL|H7zhPEipAzF)%taFgh?Xly!ZS"
        "C};(Y33Op|YhPhvV=<Iy2TKBI2xtpv4od)qlxPr#lv0!^O94v*g_LL*i9-wk002M$03bjB006+0bd+Lf9gGt)FfuhQFf"
        "lDLHB>P$Ix{djFfx>NWpyq"
    ),
    "Python 3.11.7, numpy 1.26.4, protocol 2": (
        "fC7DS04P`m0001NVR>b8aREyPSPK9E0AXWvX?9_BX>V?GaROa&11NoQ1SnVs0001VVRLI=X=HH)SP1|C0CZt<YhPhvV="
        "!?BSPB3D0CQn&aBO8?X=HeD2TK503IG5AVPkY@c42gBZ*Fl2V{UbAaCt6cZ*pZWZFOvPX<>45VR;H)a%E$0ZgX^Ubz^i"
        "2aS3B?b!~8Y3T|X!a&lpL3ULZc0EKZ2V_#!$WMyM>3T19%Z)9Z(aST`i0001DaSd1o0001NVRUJ3F>wxtaSu{)5QlLQQ"
        "gIR}O94v*g>e&OZgp*Nc?x87d2nS4aTHhr0001HG;tM)h=*|&QgIh3O9NN|0000yaTrccPD=m(|Nlz=|Ns9>0CaH~Vu@"
        "%BSPTFF0000000000KL7v#0C5^<4u)|XQgIw~aUEh<2><{9bZKp6b97;CaB&`36951JGB7eVEif@HF*Q^%Fgi0ZIxsMC"
        "A9a0kASh@BSP1|C0CZt<YhPhvV=!?cXa`FHXb5NtXbMXJg>fQi5QlLiQgI|GO94v*g>fZl7l~*LSP%dJ0002OfIk2L!+"
        "<{k0K$O6zi}pL4u)|jQgJABaVcVG9#|6q001&DGBqtQF)cAQR536*GcY<ZF>xw&eQ_%&Xa!ga0001VVRLI=VPa!3aV%&"
        "DO9E&JXbETvO8|v&EocyjaV}DEFDOd^O9O>*FlZNvXbe~l00000002M$03bjB006^)aWQBPhH)}daWiyrG-7BTSQ7vM0"
        "5UK#H7zhPEipAzF)%taFgh?YaW!>ibuI"
    ),
    "Python 3.13.0, numpy 2.5.5, protocol 4, its default": (
        "fCQDn0RR910001elqie^Y+-q2a+FI3j0<67bZK^BbZKvHbCg|_D1DSDj0bdKb8BB|WR#2vbYXLAUtwZnFqDi6b75_8Y-"
        "L|*WO$TI0E`M@V{~bDVRUJ4Zj_7`Zgp*Nc`jdLZ*pZWZFOvPX<>45VR@8{3}13(V{dMAbaHiLbd-~nj0J9WZE$&%j0bL"
        "HVRCX|d6bisO8|wGLjhuxhm=y3C`$oL1BH}m42%V2ba`-Pl#`T<0%kOniHL`kQj{o51B?MYluk}gO8@`=|4RS=|Nlz>b"
        "d+L=Lks`_0000006zc#005M9lwyntbZKp6b97;CaFmP_GB7eVEif@HF*Q^%Fgi0ZIxsMlb$yg5Xa$T3bYXLAUtwZnFqC"
        "KqO95yIXbWf#O8|wGXb^{#Qj{o50ZRjglxP@<Lks`_fIk2Lz&`*0fWMS<lwxQdj1w|2GBqtQF)cAQR536*GcY<ZF_d+E"
        "lqhHgj0tpMb8BB=Vq-CsXa`FIXb5NvXbwvNg_LLzhm=y3C`$oL1BH}m7>Pp+0000$001CB0002MlysD0XdR3bGB7eVEi"
        "f@HF*Q^%Fgi0ZIxsSnb!Bxf"
    ),
    "Python 3.13.0, numpy 2.5.5, protocol 5": (
        "fCZJJ0RR910001elqie^Y+-q2a+FI3j0<67bZK^BbZKvHbCg|_D1DSDj0bdKb8BB|WR#2vbYXLAUtwZnFqDi6b75"
        "_8Y-L|*WO$TI0E`M@V{~bDVRUJ4Zj_7@Zgp*Nc`jdLZ*pZWZgp*Ca%p3fj0<08a&K*7b!KK|a+H&lD3%NW000000"
        "00000000006zc#005MX1#We1aCwxB1!Q!2aAlN}l#BvqG?a;mhm=y3C`$v30X&pWPEJby|Ns9=|NsC0O8|6~VoL*"
        "sl#BsGlysC*l#B^<X>Db5bYX39l#CNHFfuhQFflDLHB>P$Ix{djFff#LeUvC@1&j%FVRLI=VPa!2lxPP_0cZ$l3n"
        "-Qh00000000000DwOL0Kh*00D!-gXc9{Ug_LL(bd*w*Xc>$XGB7eVEif@HF*Q^%Fgi0ZIxsPmb$yg5Xa$T3bYXLA"
        "UtwZnF_dTrO9E&JXbUKo3;+NC000000000$001CB0002MlxPx51BH}m7Ic(SlxP`@6EZL|H7zhPEipAzF)%taFgh"
        "?YlyzlwE&"
    ),
}


def by_machine(data: bytes) -> ParsedBatch:
    return _batch(read_pickle(data), len(data))


def assert_same(batch: ParsedBatch, document: dict):
    """Compares with what plain pickle makes of the same file."""
    records = document["activations"]
    assert batch.keys.task_ids.tolist() == [record["task_id"] for record in records]
    assert batch.keys.timestamps.tolist() == [record["timestamp"] for record in records]
    assert batch.keys.sample_idx.tolist() == [record["sample_idx"] for record in records]
    for name in ("step", "position", "token_id"):
        expected = [record.get(name, UNKNOWN) for record in records]
        assert getattr(batch.keys, name).tolist() == expected
    if records:
        rows = np.stack([record["activation"] for record in records])
        assert batch.stored.dtype == rows.dtype
        assert batch.stored.tobytes() == rows.tobytes()
        assert batch.stored.shape == rows.shape
    assert_well_formed(batch)


@pytest.mark.parametrize("writer", WRITTEN)
def test_what_founding_code_wrote_under_other_versions_is_read(writer):
    batch = parse_pickle(base64.b85decode(WRITTEN[writer]))
    assert (batch.hook_point, batch.dtype) == ("layer_6", "float32")
    assert batch.stored.tolist() == [[row, row + 0.5, -row] for row in range(3)]
    assert batch.keys.task_ids.tolist() == ["task_abc0", "task_abc0", "task_abc1"]
    assert batch.keys.sample_idx.tolist() == [0, 1, 2]
    assert batch.keys.timestamps.tolist() == [f"2025-01-15T10:30:0{row}" for row in range(3)]
    assert batch.keys.step.tolist() == [UNKNOWN] * 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rows", [0, 1, 2, 40, 999, 1000, 1001, 1002, 2500])
def test_founding_pickles_are_read(protocol, rows):
    # Picklers hand over a list's items 1000 at a time.
    data = founding_pickle(rows, protocol)
    assert_same(parse_pickle(data), pickle.loads(data))
    assert_same(by_machine(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("width", [1, 63, 64, 65, 255, 256, 896, 70_000])
def test_any_width_is_read(protocol, width):
    data = founding_pickle(7, protocol, width=width)
    assert_same(parse_pickle(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_other_floats_keep_their_dtype(protocol, dtype):
    data = founding_pickle(60, protocol, dtype=dtype)
    batch = parse_pickle(data)
    assert batch.dtype == np.dtype(dtype).name
    assert_same(batch, pickle.loads(data))
    rows = np.stack([record["activation"] for record in pickle.loads(data)["activations"]])
    np.testing.assert_array_equal(batch.block().activations["layer_6"], rows.astype(np.float32))


@pytest.mark.parametrize(
    ("layer", "hook_point"),
    [(0, "layer_0"), (70_000, "layer_70000"), ("final_norm", "final_norm"), ("layer_6", "layer_6")],
)
def test_layer_names_the_hook_point(layer, hook_point):
    assert parse_pickle(founding_pickle(2, layer=layer)).hook_point == hook_point


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_may_stand_in_any_order(protocol):
    document = founding_document(50)
    shuffled = random.Random(0)
    for number, record in enumerate(document["activations"]):
        items = list(record.items())
        shuffled.shuffle(items)
        document["activations"][number] = dict(items)
    document = dict(reversed(document.items()))
    assert_same(parse_pickle(pickle.dumps(document, protocol=protocol)), document)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pythons_own_pickler_writes_the_same(protocol):
    document = founding_document(60)
    data = pickle._dumps(document, protocol)  # in Python, with other frames and memo numbers
    assert_same(parse_pickle(data), document)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_may_share_an_array(protocol):
    document = founding_document(50)
    for record in document["activations"][10:]:
        record["activation"] = document["activations"][9]["activation"]
    assert_same(parse_pickle(pickle.dumps(document, protocol=protocol)), document)


PIECES = ["q", "r", "X", "h", "j", "\x05", "\0\0\0", "K", "u", "}", "(", "\x94", "\x8c", "é", "🧩"]
texts = st.one_of(
    st.text(max_size=6),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.sampled_from(["task_id", "sample_idx", "step", "C", "b", "latin1", "x" * 255, "x" * 256]),
)


@given(
    st.lists(st.tuples(texts, texts, st.integers(-(2**63), 2**63 - 1)), max_size=12),
    st.sampled_from([2, 3, 4, 5]),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
)
def test_any_batch_is_read_as_pickle_reads_it(rows, protocol, with_steps, number):
    document = {
        "layer": 6,
        "activations": [
            {
                "task_id": task,
                "sample_idx": sample,
                "activation": np.full(2, sample, np.float32),
                "timestamp": time,
                **({"step": number, "position": row, "token_id": -row} if with_steps else {}),
            }
            for row, (task, time, sample) in enumerate(rows * 5)
        ],
    }
    data = pickle.dumps(document, protocol=protocol)
    assert_same(parse_pickle(data), document)
    assert_same(by_machine(data), document)


def flipped(data: bytes, count: int, seed: int):
    """Copies with one bit of the content changed."""
    generator = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(data)
        damaged[generator.randrange(2, len(data))] ^= 1 << generator.randrange(8)
        yield bytes(damaged)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_damage_is_never_read_as_other_rows(protocol):
    document = founding_document(60, width=3)
    data = pickle.dumps(document, protocol=protocol)
    rows = [record["activation"].tobytes() for record in document["activations"]]
    for damaged in flipped(data, 500, seed=protocol):
        try:
            batch = parse_pickle(damaged)
        except CorruptBatchError:
            continue
        # A flipped bit may hit a value, and then changes that value alone.
        changed = sum(
            stored.tobytes() != row for stored, row in zip(batch.stored, rows, strict=True)
        )
        keys = list(zip(batch.keys.task_ids, batch.keys.sample_idx.tolist(), strict=True))
        changed += sum(
            key != (record["task_id"], record["sample_idx"])
            for key, record in zip(keys, document["activations"], strict=True)
        )
        assert changed <= 2


# How our own files are read: as a table, which must give what the machine and pickle give.


@given(
    st.lists(st.tuples(texts, texts, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.one_of(st.integers(0, 10**9 - 1).map("layer_{}".format), texts.filter(len)),
)
def test_our_own_files_are_read_as_pickle_reads_them(rows, width, hook):
    tasks, times, samples = zip(*rows, strict=True)
    numbers = np.array(samples)
    block = RowBlock(
        task_ids=text_column(tasks),
        timestamps=text_column(times),
        sample_idx=numbers,
        **{name: numbers.astype(np.int32) for name in ("step", "position", "token_id")},
        activations={hook: np.arange(len(rows) * width, dtype=np.float32).reshape(-1, width)},
    )
    data = PickleFormat().serialise(hook, block).join()
    document = pickle.loads(data)
    batch = read_table(data)
    assert batch is not None
    assert batch.hook_point == hook
    assert_same(batch, document)
    assert_same(by_machine(data), document)
    assert_same_keys(batch.keys, block)


@pytest.mark.parametrize("rows", [1, 900])
@pytest.mark.parametrize("width", [1, 63, 896])
def test_our_own_files_are_read_as_a_table(rows, width):
    block = varied_block(rows, width)
    data = PickleFormat().serialise(HOOK, block).join()
    batch = read_table(memoryview(data))
    assert batch is not None
    assert batch.stored.flags.c_contiguous
    assert batch.stored.flags.aligned
    assert batch.stored.tobytes() == block.activations[HOOK].tobytes()
    assert_same_keys(batch.keys, block)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_table_is_read_as_the_machine_reads_it(seed):
    data = PickleFormat().serialise(HOOK, varied_block(20, width=2, seed=seed)).join()
    as_table = 0
    for damaged in flipped(data, 1500, seed):
        try:
            expected = by_machine(damaged)
        except Exception:
            with pytest.raises(CorruptBatchError):
                parse_pickle(damaged)
            continue
        batch = parse_pickle(damaged)
        assert batch.hook_point == expected.hook_point
        assert batch.stored.tobytes() == expected.stored.tobytes()
        assert_same_keys(batch.keys, expected.keys)
        with contextlib.suppress(Exception):
            as_table += read_table(damaged) is not None
    assert as_table > 100  # a changed number or activation is no change of the layout


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"(" + text("a") + b"0", "drops"),
        (b"0", "IndexError"),
        (b"}\x940" * 200, "drops"),
    ],
    ids=["below a mark", "of nothing", "more than texts"],
)
def test_what_no_batch_drops_is_refused(start, reason):
    data = b"\x80\x04" + start + good_batch()[2:]
    with pytest.raises(CorruptBatchError, match=reason):
        parse_pickle(data)
