import re

import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis import Settings, compare, document, pair
from imgrl.analysis.page import page, short


@pytest.fixture
def report(tmp_path):
    before = {f"layers.{i}.weight": torch.randn(12, 10) for i in range(3)}
    save_file(before, tmp_path / "before.safetensors")
    for run in "ab":
        after = {name: tensor + 0.01 * torch.randn(12, 10) for name, tensor in before.items()}
        save_file(after, tmp_path / f"{run}.safetensors")
    settings = Settings(k=(4,))
    pairing = pair(tmp_path / "before.safetensors", [tmp_path / f"{run}.safetensors" for run in "ab"])
    return document(pairing, list(compare(pairing, settings)), settings, base="before", tuned=["a", "b"])


def test_every_row_of_every_table_has_a_cell_under_each_heading(report):
    pytest.importorskip("matplotlib")
    text = page(report)
    tables = re.findall(r"<table>(.*?)</table>", text, re.S)
    assert len(tables) == 4  # totals, overlaps, agreement, matrices
    for table in tables:
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
        counts = {row.count("<td>") + row.count("<th>") for row in rows}
        assert len(counts) == 1 and len(rows) > 1
    assert tables[3].count("<tr>") == 1 + 3 * 2


def test_cells_stand_under_their_headings(report):
    pytest.importorskip("matplotlib")
    table = re.findall(r"<table>(.*?)</table>", page(report), re.S)[3]
    head = re.findall(r"<th>(.*?)</th>", table)
    first = re.findall(r"<td>(.*?)</td>", table)[: len(head)]
    run = report["layers"][0]["runs"][0]
    assert first[head.index("largest angle")] == short(run["largest_angle"])
    assert first[head.index("largest angle") + 1] == short(run["noise_angle"])
    principal = next(o for o in run["overlaps"] if o["mask"] == "principal")
    assert first[head.index("principal: / matched")] == short(principal["over_matched"])


def test_a_rotated_pair_has_tables_of_its_own(report, tmp_path):
    pytest.importorskip("matplotlib")
    assert "Beside" not in page(report)
    before, a, b = (tmp_path / f"{name}.safetensors" for name in ("before", "a", "b"))
    settings = Settings(k=(4,))
    pairing = pair(before, [a, b], rotated=(before, b))
    names = {"base": "before", "tuned": ["a", "b"], "rotated": ("<turned>", "b")}
    text = page(document(pairing, list(compare(pairing, settings)), settings, **names))
    tables = re.findall(r"<table>(.*?)</table>", text, re.S)
    groups, matrices = tables[3:5]
    assert groups.count("<tr>") == 1 + 2 * 3 and matrices.count("<tr>") == 1 + 2 * 3
    for table, second in (
        (groups, ["–", "1", "1"]),
        (matrices, ["1"] * 3),
    ):  # run 2 is the very run beside it
        head = re.findall(r"<th>(.*?)</th>", table)
        rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:]]
        assert {len(row) for row in rows} == {len(head)}
        assert [row[head.index("jaccard")] for row in rows if row[1] == "2"] == second
    assert "&lt;turned&gt;" in text and "<turned>" not in text


def test_numbers_are_short():
    assert [short(value) for value in (None, 0.123456, 1234567, "x")] == ["–", "0.123", "1,234,567", "x"]
