"""Exports of Nsight Systems, with exact values."""

from __future__ import annotations

import sqlite3

import pytest

from sim.errors import BadFile
from sim.traces.measured import open_trace

PROCESS = 4242 << 24
TABLES = {
    "StringIds": "id INTEGER, value TEXT",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER, end INTEGER, globalTid INTEGER, "
    "correlationId INTEGER, nameId INTEGER",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, "
    "correlationId INTEGER, globalPid INTEGER, shortName INTEGER, demangledName INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER, end INTEGER, deviceId INTEGER, "
    "streamId INTEGER, correlationId INTEGER, globalPid INTEGER, bytes INTEGER, copyKind INTEGER, "
    "srcKind INTEGER, dstKind INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER",
    "NVTX_EVENTS": "start INTEGER, end INTEGER, text TEXT, textId INTEGER",
    "TARGET_INFO_GPU": "id INTEGER, name TEXT",
}
ROWS = {
    "StringIds": [
        (1, "void gemm<float>()"),
        (2, "cudaLaunchKernel"),
        (3, "cudaStreamSynchronize_v3020"),
        (4, "step[decode bs=8]"),
    ],
    "CUPTI_ACTIVITY_KIND_RUNTIME": [
        (900, 950, PROCESS + 7, 11, 2),
        (1120, 1150, PROCESS + 7, 12, 2),
        (1500, 1600, PROCESS + 7, 13, 2),
        (1400, 1450, PROCESS + 7, 99, 3),
    ],
    "CUPTI_ACTIVITY_KIND_KERNEL": [
        (1000, 1200, 0, 7, 11, PROCESS, 1, 1),
        (1600, 1700, 0, 7, 13, PROCESS, 1, 1),
    ],
    "CUPTI_ACTIVITY_KIND_MEMCPY": [
        (1150, 1350, 0, 13, 12, PROCESS, 4096, 1, 1, 2),
        (1650, 1750, 0, 14, 88, PROCESS, 2048, 2, 2, 0),
        (1720, 1730, 0, 14, 88, PROCESS, 64, 8, 2, 2),
    ],
    "CUPTI_ACTIVITY_KIND_MEMSET": [(1740, 1790, 0, 7)],
    "NVTX_EVENTS": [(890, 1500, None, 4), (1500, 1800, "step[idle]", None), (1, 2, "other", None)],
    "TARGET_INFO_GPU": [(0, "NVIDIA H100")],
}


def database(path, leave_out=(), rows=ROWS):
    with sqlite3.connect(path) as made:
        for table, columns in TABLES.items():
            if table not in leave_out:
                made.execute(f"CREATE TABLE {table} ({columns})")
                places = ",".join("?" * len(columns.split(",")))
                made.executemany(f"INSERT INTO {table} VALUES ({places})", rows.get(table, ()))  # noqa: S608
    made.close()
    return path


def ns(seconds):
    return round(1e9 * seconds)


def test_every_second_of_a_database_by_hand(tmp_path):
    found = open_trace(database(tmp_path / "a.sqlite"))
    whole = found.measures
    assert found.notes == ()
    assert found.events.format == "Nsight Systems, SQLite"
    assert ns(whole.span_s) == 790
    assert ns(whole.kernel_s) == 300
    assert (ns(whole.h2d_copy_s), ns(whole.h2d_hidden_s)) == (200, 50)
    assert (ns(whole.d2h_copy_s), ns(whole.d2h_hidden_s)) == (100, 50)
    assert ns(whole.exposed_copy_s) == 200
    assert ns(whole.other_s) == 40
    assert ns(whole.idle_s) == 250
    idle = found.idle
    assert (ns(idle.host_s), ns(idle.host_sync_s)) == (100, 50)
    assert (ns(idle.waiting_s), ns(idle.unknown_s)) == (100, 0)
    assert [(row.direction, row.memory, row.bytes) for row in found.copies] == [
        ("h2d", "pinned", 4096),
        ("d2h", "pageable", 2048),
        ("d2d", "", 64),
    ]
    assert found.kernels[0].name == "void gemm<float>()"
    assert found.to_dict()["devices"][0]["name"] == "NVIDIA H100"
    first, second = found.steps
    assert (first.name, second.name) == ("step[decode bs=8]", "step[idle]")
    assert (ns(first.measures.kernel_s), ns(first.measures.h2d_copy_s)) == (200, 200)
    assert (ns(second.measures.kernel_s), ns(second.measures.d2h_copy_s)) == (100, 100)


def test_a_partial_database_says_what_it_lacks(tmp_path):
    lacking = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_MEMCPY", "StringIds")
    found = open_trace(database(tmp_path / "a.sqlite", lacking))
    assert ns(found.measures.kernel_s) == 300
    assert found.measures.h2d_overlap_frac is None
    assert ns(found.idle.unknown_s) > 0
    notes = " ".join(found.notes)
    assert "no table CUPTI_ACTIVITY_KIND_MEMCPY: no copies." in notes
    assert "no table CUPTI_ACTIVITY_KIND_RUNTIME: no launches" in notes


def test_graphs_that_were_recorded_as_a_whole_count_as_kernels(tmp_path):
    path = database(tmp_path / "a.sqlite", ("CUPTI_ACTIVITY_KIND_KERNEL",))
    with sqlite3.connect(path) as made:
        made.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER, end INTEGER, deviceId "
            "INTEGER, streamId INTEGER, graphId INTEGER)"
        )
        made.execute("INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (1200, 1300, 0, 7, 5)")
    made.close()
    found = open_trace(path)
    assert ns(found.measures.h2d_hidden_s) == 100
    assert found.kernels[0].name == "CUDA graph 5"
    assert "--cuda-graph-trace=node" in " ".join(found.notes)


def test_rows_that_end_early_are_left_out(tmp_path):
    kernels = [(1000, 1200, 0, 7, 1, PROCESS, 1, 1), (50, 40, 0, 7, 1, PROCESS, 1, 1)]
    kernels += [(None, 40, 0, 7, 1, PROCESS, 1, 1)]
    rows = {**ROWS, "CUPTI_ACTIVITY_KIND_KERNEL": kernels}
    found = open_trace(database(tmp_path / "a.sqlite", rows=rows))
    assert ns(found.measures.kernel_s) == 200
    assert "1 rows left out: negative duration." in found.notes


@pytest.mark.parametrize("keep", [100, 5000])
def test_a_damaged_database_is_refused(tmp_path, keep):
    path = database(tmp_path / "a.sqlite")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadFile, match="cannot be read as a database of Nsight Systems"):
        open_trace(path)


def test_a_database_of_something_else_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "a.sqlite") as made:
        made.execute("CREATE TABLE people (name TEXT)")
    made.close()
    with pytest.raises(BadFile, match="CUPTI_ACTIVITY_KIND_MEMCPY nor"):
        open_trace(tmp_path / "a.sqlite")


CSV = """Processing [a.sqlite] with [cuda_gpu_trace.py]...
Start ({unit}),Duration ({unit}),CorrId,GrdX,Bytes (MB),SrcMemKd,DstMemKd,Device,Ctx,Strm,Name
1000,200,1,128,,,,NVIDIA H100 (1),1,7,"void gemm<float, 4>(int, int)"
1150,100,2,,4.194,Pinned,Device,NVIDIA H100 (1),1,13,[CUDA memcpy Host-to-Device]
1300,50,3,,2.000,Device,Pageable,NVIDIA H100 (1),1,14,[CUDA memcpy Device-to-Host]
1400,10,4,,0.001,Device,,NVIDIA H100 (1),1,7,[CUDA memset]
"""


@pytest.mark.parametrize(("unit", "scale"), [("ns", 1), ("us", 1000)])
def test_every_second_of_a_csv_by_hand(tmp_path, unit, scale):
    (tmp_path / "a.csv").write_text(CSV.format(unit=unit))
    found = open_trace(tmp_path / "a.csv")
    whole = found.measures
    assert ns(whole.kernel_s) == 200 * scale
    assert (ns(whole.h2d_copy_s), ns(whole.h2d_hidden_s)) == (100 * scale, 50 * scale)
    assert (ns(whole.d2h_copy_s), whole.d2h_overlap_frac) == (50 * scale, 0)
    assert ns(whole.other_s) == 10 * scale
    assert [(row.memory, row.bytes, row.device) for row in found.copies] == [
        ("pinned", 4_194_000, 1),
        ("pageable", 2_000_000, 1),
    ]
    assert "no causes of idle time" in found.notes[0]
    assert ns(found.idle.unknown_s) == ns(whole.idle_s)


def test_rows_of_a_csv_without_numbers_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text(CSV.format(unit="ns") + "x,1,5,,,,,,,7,gemm\n1,2\n\n")
    found = open_trace(tmp_path / "a.csv")
    assert ns(found.measures.kernel_s) == 200
    assert "2 rows left out: a value is missing or is no number." in found.notes
