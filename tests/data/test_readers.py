from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from llm_rerank.data.readers import read_interactions, read_items, read_table
from llm_rerank.types import DataError, DataReport


def write(tmp_path, content, name="table.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(path, **settings):
    report = DataReport()
    return read_table(path, report=report, **settings), report.notes


@pytest.mark.parametrize(("delimiter", "word"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "bar")])
def test_the_delimiter_is_found_and_said(tmp_path, delimiter, word):
    rows = [["user", "note", "n"], ["u1", "a" if delimiter == "," else "a, b, c", "1"], ["u2", "x", "2"]]
    path = write(tmp_path, "\n".join(delimiter.join(row) for row in rows))
    frame, notes = read(path)
    assert frame.columns.tolist() == rows[0] and frame["note"].tolist() == [rows[1][1], "x"]
    assert frame["n"].tolist() == [1, 2]
    assert notes == [f"table.csv: utf-8, delimiter {word}"]


def test_a_delimiter_that_cuts_every_line_alike_beats_one_that_cuts_more(tmp_path):
    frame, _ = read(write(tmp_path, "price; net; gross,note\n1,a\n2,b;c\n"))
    assert frame.columns.tolist() == ["price; net; gross", "note"] and frame["note"].tolist() == ["a", "b;c"]


def test_blank_lines_and_a_spreadsheets_word_before_the_header(tmp_path):
    for start in ("\n\n", "sep=;\n", "sep=;\r\n"):
        assert read(write(tmp_path, f"{start}a;b\n1;2\n"))[0].to_dict("list") == {"a": [1], "b": [2]}


def test_quotes_hold_delimiters_line_breaks_and_quotes(tmp_path):
    path = write(tmp_path, 'id,text\r\n1,"a, ""b""\r\nc"\r\n2,d\r\n')
    assert read(path)[0]["text"].tolist() == ['a, "b"\nc', "d"]
    path = write(tmp_path, 'id\ttext\n1\t"Heroes"\n2\t12" single\n')
    assert read(path, quoted=False)[0]["text"].tolist() == ['"Heroes"', '12" single']


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "user_id,item_id")
    return content.getvalue()


CHINESE = "编号,名称\n1,不锈钢保温杯\n2,儿童雨衣（黄色）\n"
FRENCH = "id;nom\n1;Théière à café\n2;Crème brûlée pour l'été\n"


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        (CHINESE, "utf-8", "utf-8"),
        (CHINESE, "utf-8-sig", "utf-8-sig"),
        (CHINESE, "gbk", "gb18030 (a guess: where letters look wrong, name the encoding)"),
        (CHINESE, "utf-16", "utf-16"),
        (FRENCH, "utf-8", "utf-8"),
        (FRENCH, "cp1252", "cp1252"),
        (FRENCH, "latin-1", "cp1252"),
        ("id,name\n1,Müller\n2,Jäger\n", "latin-1", "cp1252"),  # both would decode as GB18030 too
        ("id,name\n1,Groß & Schön\n2,Übergröße\n3,naïve\n", "latin-1", "cp1252"),
    ],
)
def test_the_encoding_is_found_and_said(tmp_path, text, encoding, said):
    frame, notes = read(write(tmp_path, text, encoding=encoding))
    rows = [line.split(";" if ";" in text else ",") for line in text.splitlines()]
    assert frame.columns.tolist() == rows[0]
    assert frame.iloc[:, 1].tolist() == [row[1] for row in rows[1:]]
    assert notes[0].startswith(f"table.csv: {said}")


def test_an_encoding_that_is_given_is_taken(tmp_path):
    path = write(tmp_path, "id,name\n1,чайник\n", encoding="cp1251")
    assert read(path, encoding="cp1251")[0]["name"].tolist() == ["чайник"]
    with pytest.raises(DataError, match="cannot be read as utf-8 .*give the file's true encoding, such as encoding="):
        read(path, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as klingon"):
        read(path, encoding="klingon")


def test_decimal_commas_are_found_and_said(tmp_path):
    path = write(tmp_path, "id;price;big\n1;12,50;1.299,00\n2;3,5;2,5\n3;7;\n")
    frame, notes = read(path)
    assert frame["price"].tolist() == [12.5, 3.5, 7.0]
    assert frame["big"].tolist()[:2] == [1299.0, 2.5] and np.isnan(frame["big"].iloc[2])
    assert notes == ["table.csv: utf-8, delimiter semicolon, decimal comma in price, big"]


def test_a_comma_before_three_digits_only_is_left_for_the_schema(tmp_path):
    assert read(write(tmp_path, "id;price\n1;1,299\n2;2,450\n"))[0]["price"].tolist() == ["1,299", "2,450"]


def test_numbers_only_where_nothing_is_lost(tmp_path):
    text = "zeros,plus,long,code,int,float,hole\n007,+1,123456789012345678901,12E4,-7,1.50,1\n012,+2,1,13E4,0,2,\n"
    frame, _ = read(write(tmp_path, text))
    assert frame["zeros"].tolist() == ["007", "012"]
    assert frame["plus"].tolist() == ["+1", "+2"]
    assert frame["long"].tolist() == ["123456789012345678901", "1"]
    assert frame["code"].tolist() == ["12E4", "13E4"]
    assert frame["int"].dtype == np.int64 and frame["int"].tolist() == [-7, 0]
    assert frame["float"].dtype == np.float64 and frame["float"].tolist() == [1.5, 2.0]
    assert frame["hole"].dtype == "Int64" and frame["hole"].iloc[0] == 1 and pd.isna(frame["hole"].iloc[1])


def test_numbers_with_an_exponent_are_numbers_and_ids_are_not(tmp_path):
    text = "item_id,p,q,code\n1e-05,1e-05,.5e3,1E5\n2e-05,-2E+16,0.5,2E5\n"
    frame, _ = read(write(tmp_path, text))
    assert frame["p"].tolist() == [1e-05, -2e16] and frame["q"].tolist() == [500.0, 0.5]
    assert frame["item_id"].tolist() == ["1e-05", "2e-05"] and frame["code"].tolist() == ["1E5", "2E5"]


def test_ids_stay_as_written_where_a_number_would_lose_anything(tmp_path):
    text = "item_id,code,customer,price,seller\n1.1,1.1,007.5,1.10,1.10\n1.10,1.10,7.5,1.1,1.1\n"
    frame, _ = read(write(tmp_path, text), columns={"code": "item_id"})
    assert frame["item_id"].tolist() == frame["code"].tolist() == ["1.1", "1.10"]
    assert frame["customer"].tolist() == ["007.5", "7.5"]
    assert frame["price"].tolist() == frame["seller"].tolist() == [1.1, 1.1]  # no ids: a measure loses nothing
    exported = write(tmp_path, "item_id,user_id\n17850.0,1.5\n,2.25\n13047.0,\n")  # as pandas writes ids beside a gap
    assert read(exported)[0]["item_id"].tolist()[::2] == [17850.0, 13047.0]
    assert read(exported)[0]["user_id"].tolist()[:2] == [1.5, 2.25]
    commas = write(tmp_path, "item_id;price\n1,10;1,10\n1,1;2,5\n")
    assert read(commas)[0]["item_id"].tolist() == ["1,10", "1,1"] and read(commas)[0]["price"].tolist() == [1.1, 2.5]


def test_words_for_nothing_count_as_such_among_numbers_only(tmp_path):
    frame, _ = read(write(tmp_path, "brand,price\nNA,1.5\nnull,NA\nNone,nan\n"))
    assert frame["brand"].tolist() == ["NA", "null", "None"]
    assert frame["price"].iloc[0] == 1.5 and frame["price"].iloc[1:].isna().all()


def test_empty_columns_without_a_name_are_left_out_and_others_kept(tmp_path):
    frame, notes = read(write(tmp_path, "a,b,,,\n1,2,,x,\n3,4,,,\n"))
    assert frame.columns.tolist() == ["a", "b", "column_4"]
    assert notes == ["table.csv: utf-8, delimiter comma, 2 empty columns without a name left out"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_every_format_gzipped_or_not_whatever_the_suffix(tmp_path, kind, packed):
    frame = pd.DataFrame({"item_id": ["a", "b"], "price": [1.5, 2.0]})
    raw = {
        "csv": frame.to_csv(index=False).encode(),
        "jsonl": "\n".join(json.dumps(row) for row in frame.to_dict("records")).encode(),
        "json": json.dumps(frame.to_dict("records")).encode(),
        "parquet": frame.to_parquet(index=False),
    }[kind]
    path = write(tmp_path, gzip.compress(raw) if packed else raw, name="export.dat")
    pd.testing.assert_frame_equal(read(path)[0], frame, check_dtype=False)


def test_json_lines_keep_lists_and_texts(tmp_path):
    path = write(tmp_path, '{"id": "007", "c": ["A", "B"], "s": {"w": 1}}\n\n{"id": "8"}\n', name="items.jsonl")
    frame, _ = read(path)
    assert frame["id"].tolist() == ["007", "8"] and frame["c"].iloc[0] == ["A", "B"] and frame["s"].iloc[0] == {"w": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a file with a header"),
        (b"  \n \n", "is empty; give a file with a header"),
        (gzip.compress(b"", mtime=0), "is empty; give a file with a header"),
        (gzip.compress(b"a,b\n1,2\n" * 500, mtime=0)[:-20], "is a damaged gzip file .*copy or download it again"),
        (b"PAR1 and then nonsense", "is a damaged Parquet file .*copy or download it again"),
        (b"1,31,2.5\n1,1029,3\n", "the first line of .* looks like data; add a line of column names"),
        (b"a,b,a\n1,2,3\n", r"has the columns \['a'\] more than once; rename"),
        (b"a,b\n1,2\n1,2,3,4\n", "is no well-formed table .*line 3"),
        (b"a,b\n1,2,3\n4,5,6\n", "is no well-formed table .*give every column a name"),
        (b'a,b\n1,"x\n2,y\n', "is no well-formed table .*quote values"),
        (b'{"a": 1}\n{"a": \n', "line 2 of .* is no JSON object"),
        (b'{"a": 1}\n[1, 2]\n', "line 2 of .* is no JSON object"),
        (b'[{"a": 1}, 2]', "holds a JSON list of other things than objects"),
        (b'[{"a": 1}', "is no well-formed JSON"),
        (b"[]", "has no rows; give at least one"),
        (zipped("xl/workbook.xml"), "is a spreadsheet's own file, as Excel writes it; save the sheet as CSV"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500), "is a spreadsheet's own file, as Excel writes it"),
        (zipped("orders.csv"), "is a zip archive; unpack it"),
    ],
)
def test_broken_files_are_named_with_a_remedy(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [140_000, 500_000])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("words", ["x", 'a "b", c; d|e\n'])
def test_a_cell_may_be_of_any_length(tmp_path, delimiter, words, length):
    long = (words * length)[:length]
    rows = [["item_id", "description", "price"], ["i1", long, "1"], ["i2", "short", "2"], ["i3", long[:50], "3"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    frame, _ = read(write(tmp_path, text.getvalue()))
    assert frame.columns.tolist() == rows[0]
    assert frame["description"].tolist() == [row[1].replace("\r\n", "\n") for row in rows[1:]]
    assert frame["price"].tolist() == [1, 2, 3]


def test_a_header_without_an_end_is_no_header(tmp_path):
    with pytest.raises(DataError, match="has no header that can be read .*add a line of column names"):
        read(write(tmp_path, "user_id," + "x" * 140_000))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist; check the path"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="cannot be read .*give a readable file"):
        read(tmp_path)


def test_a_file_with_a_header_only_has_no_rows(tmp_path):
    frame, _ = read(write(tmp_path, "user_id,item_id,timestamp\n"))
    assert frame.columns.tolist() == ["user_id", "item_id", "timestamp"] and len(frame) == 0


def test_events_and_items_under_a_shops_own_names(tmp_path):
    orders = write(tmp_path, "customer;sku;when;shop\nu1;a;2024-05-31;Kiel\n", name="orders.csv")
    columns = {"customer": "user_id", "sku": "item_id", "when": "timestamp"}
    frame = read_interactions(orders, columns=columns)
    assert frame.to_dict("records") == [{"user_id": "u1", "item_id": "a", "timestamp": "2024-05-31", "shop": "Kiel"}]
    with pytest.raises(DataError, match=r"interactions has no column 'user_id'.*columns=\{'customer': 'user_id'\}"):
        read_interactions(orders)
    items = write(tmp_path, "sku,name\na,Lamp\n", name="items.csv")
    assert read_items(items, columns={"sku": "item_id", "name": "title"})["title"].tolist() == ["Lamp"]
    with pytest.raises(DataError, match="items has no column 'item_id'"):
        read_items(items)
